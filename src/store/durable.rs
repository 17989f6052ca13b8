//! What makes a commit survive a power cut, and what a power cut leaves of one that nobody was told of. The local
//! store writes, renames and links without flushing.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// What the name of a commit ends in once it is set aside.
const TORN: &str = "torn";

fn commit_path(folder: &Path, version: u64) -> PathBuf {
    folder.join("_delta_log").join(format!("{version:020}.json"))
}

/// The actions of a commit, as they are written.
///
/// # Errors
/// Where it cannot be read, or is none.
pub(super) fn actions(folder: &Path, version: u64) -> io::Result<Vec<serde_json::Value>> {
    let text = fs::read_to_string(commit_path(folder, version))?;
    text.lines().map(|line| serde_json::from_str(line).map_err(io::Error::from)).collect()
}

/// The files a commit adds, with their sizes.
fn added(actions: &[serde_json::Value]) -> impl Iterator<Item = (&str, Option<u64>)> {
    let adds = actions.iter().filter_map(|action| action.get("add"));
    adds.filter_map(|add| Some((add.get("path")?.as_str()?, add.get("size").and_then(serde_json::Value::as_u64))))
}

/// Flushes files of a table that a commit is about to name.
///
/// # Errors
/// Where the disk fails; then the commit must not be made.
pub(super) fn flush_files(folder: &Path, files: &[String]) -> io::Result<()> {
    for file in files {
        File::open(folder.join(file))?.sync_all()?;
    }
    File::open(folder)?.sync_all()
}

/// Flushes a commit whose files are flushed.
///
/// # Errors
/// Where the disk fails; then nobody may be told of the commit.
pub(super) fn flush_commit(folder: &Path, version: u64) -> io::Result<()> {
    File::open(commit_path(folder, version))?.sync_all()?;
    File::open(folder.join("_delta_log"))?.sync_all()
}

/// Flushes a commit and the files it names.
///
/// # Errors
/// Where the disk fails, or the commit is not there.
pub(super) fn make_durable(folder: &Path, version: u64) -> io::Result<()> {
    let actions = actions(folder, version)?;
    let files: Vec<String> = added(&actions).map(|(path, _)| path.to_owned()).collect();
    flush_files(folder, &files)?;
    flush_commit(folder, version)
}

/// Flushes commits from one version on, as far as they are there: those that a checkpoint stands for were flushed
/// before they were deleted.
///
/// # Errors
/// Where the disk fails.
pub(super) fn make_all_durable(folder: &Path, versions: std::ops::RangeInclusive<u64>) -> io::Result<()> {
    for version in versions {
        match make_durable(folder, version) {
            Err(error) if error.kind() == ErrorKind::NotFound && !commit_path(folder, version).exists() => {}
            flushed => flushed?,
        }
    }
    Ok(())
}

/// Flushes that a folder was made, and the folder it was made in.
///
/// # Errors
/// Where the disk fails.
pub(super) fn flush_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    folder.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Sets aside commits above `counted` that a power cut left torn, or whose files it took: nobody was told of them,
/// since a commit is told of once all of it is flushed. Only before the table is opened. Returns how many there were.
///
/// # Errors
/// Where the disk fails.
pub(super) fn set_torn_aside(folder: &Path, counted: u64) -> io::Result<usize> {
    let log = folder.join("_delta_log");
    let listed = match fs::read_dir(&log) {
        Ok(listed) => listed,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut versions = Vec::new();
    for entry in listed {
        let name = entry?.file_name();
        let version = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<u64>().ok());
        versions.extend(version.filter(|version| *version > counted));
    }
    versions.sort_unstable_by(|one, other| other.cmp(one));
    let mut torn = 0;
    for version in versions {
        if is_whole(folder, version)? {
            break;
        }
        let path = commit_path(folder, version);
        tracing::warn!(commit = %path.display(), "a commit that a power cut left torn is set aside");
        fs::rename(&path, path.with_extension(TORN))?;
        torn += 1;
    }
    if torn > 0 {
        File::open(log)?.sync_all()?;
    }
    Ok(torn)
}

fn is_whole(folder: &Path, version: u64) -> io::Result<bool> {
    let actions = match actions(folder, version) {
        Ok(actions) if !actions.is_empty() => actions,
        Ok(_) => return Ok(false),
        // Not JSON, or not text at all.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => return Ok(false),
        Err(error) if error.get_ref().is_some_and(|cause| cause.is::<serde_json::Error>()) => return Ok(false),
        Err(error) => return Err(error),
    };
    let is_there = |(path, size): (&str, Option<u64>)| {
        fs::metadata(folder.join(path)).is_ok_and(|file| size.is_none_or(|size| file.len() == size))
    };
    Ok(added(&actions).all(is_there))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(folder: &Path, version: u64, text: &str) {
        fs::create_dir_all(folder.join("_delta_log")).expect("log");
        fs::write(commit_path(folder, version), text).expect("commit");
    }

    #[test]
    fn what_nobody_was_told_of_and_is_torn_is_set_aside() {
        let folder = tempfile::tempdir().expect("folder");
        let folder = folder.path();
        assert_eq!(set_torn_aside(folder, 0).expect("nothing"), 0);
        fs::write(folder.join("a.parquet"), [0; 10]).expect("file");
        let whole = "{\"commitInfo\":{}}\n{\"add\":{\"path\":\"a.parquet\",\"size\":10}}\n";
        commit(folder, 1, whole);
        commit(folder, 2, whole);
        for torn in [
            "",
            "{\"commitInfo\":{}}\n{\"add\":{\"pa",
            "{\"add\":{\"path\":\"a.parquet\",\"size\":11}}",
            "{\"add\":{\"path\":\"b.parquet\",\"size\":10}}",
        ] {
            commit(folder, 3, torn);
            assert_eq!(set_torn_aside(folder, 1).expect("set aside"), 1, "{torn}");
            assert!(!commit_path(folder, 3).exists() && commit_path(folder, 2).exists());
        }
        fs::write(commit_path(folder, 3), [0xff, 0xfe]).expect("no text");
        assert_eq!(set_torn_aside(folder, 1).expect("set aside"), 1);
        // What was counted is never touched: damage there is for people to look at.
        commit(folder, 2, "");
        assert_eq!(set_torn_aside(folder, 2).expect("nothing"), 0);
        assert!(commit_path(folder, 2).exists());
        // Nor is what lies below a whole one.
        commit(folder, 3, whole);
        assert_eq!(set_torn_aside(folder, 1).expect("nothing"), 0);
    }

    #[test]
    fn commits_that_a_checkpoint_stands_for_need_not_be_there() {
        let folder = tempfile::tempdir().expect("folder");
        let folder = folder.path();
        commit(folder, 4, "{\"commitInfo\":{}}\n");
        make_all_durable(folder, 1..=4).expect("flushed");
        // A file that a commit names must.
        commit(folder, 5, "{\"add\":{\"path\":\"gone.parquet\",\"size\":10}}\n");
        assert!(make_all_durable(folder, 4..=5).is_err());
    }
}
