//! Disks that are full or read-only, and folders that are something else: refused clearly, nothing lost.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use arrow::compute::concat_batches;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use serde_json::json;
use uuid::Uuid;

use super::{
    kills::person,
    process::{Ended, Heard, Process, assert_whole_log, copy, plain, send, serve, serving, text, token},
};
use crate::support::{CSV, PARQUET, batch_of, files_below, fixture, repository};

const HEADER: &str = "visit_id,grid_code,household_id,id_no,name,phone,worker_id,visited_at,mode,temperature,symptoms,\
                      needs,remark";

/// A hub's folder with the divisions pushed, and the token of the communities.
fn site() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let hub = Process::start(folder.path());
    let platform = token(folder.path(), "platform-uploader");
    let path = format!("/v1/datasets/platform.divisions/batches/{}", Uuid::now_v7());
    let divisions = fixture("platform.divisions.csv");
    let heard = send(&hub.address, &platform, "PUT", &path, &[("content-type", CSV)], &divisions).unwrap();
    assert_eq!(heard.status, 201, "{}", text(&heard.body));
    let community = token(folder.path(), "community-uploader");
    // Ended in order, so that the metadata's own log is empty again.
    hub.stop();
    (folder, community)
}

/// A hub for which no file grows beyond so many kilobytes: with the signal ignored, a longer write fails (EFBIG)
/// as it does on a full disk, without a disk to fill. POSIX counts the limit in blocks of 512 bytes.
fn on_a_small_disk(folder: &Path, kilobytes: u64) -> Command {
    let mut command = Command::new("sh");
    let script = "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"";
    command.args(["-c", script, "sh", &(2 * kilobytes).to_string(), env!("CARGO_BIN_EXE_gridhub")]);
    command.args(serving(folder));
    plain(command)
}

/// Visits whose pseudonyms take more room than the file they come in, which repeats itself.
fn visits(batch: usize, rows: usize) -> Vec<u8> {
    let slices: Vec<_> = (0..rows)
        .step_by(1_000)
        .map(|first| {
            let mut file = format!("{HEADER}\n");
            for row in first..rows.min(first + 1_000) {
                let id = person(row as u32);
                file.push_str(&format!(
                    "D{batch}-{row},420191001001001,H{batch}-{row},{id},,14100{row:06},W{batch}-{row},\
                     2026-01-05 10:00:00,入户,36.5,,,\n"
                ));
            }
            batch_of("community.visits", file.as_bytes())
        })
        .collect();
    let rows = concat_batches(&slices[0].schema(), &slices).unwrap();
    let layout = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, rows.schema(), Some(layout)).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    out
}

fn push(hub: &Process, token: &str, id: Uuid, media_type: &str, file: &[u8]) -> Heard {
    let path = format!("/v1/datasets/community.visits/batches/{id}");
    // A reply sent before the whole body was read may be lost with the connection; asking again is what senders do.
    let tries =
        (0..5).find_map(|_| send(&hub.address, token, "PUT", &path, &[("content-type", media_type)], file).ok());
    tries.expect("a reply")
}

fn count(hub: &Process, token: &str) -> u64 {
    hub.ask(token, "SELECT count(*) FROM visits").unwrap().rows()[0][0].as_u64().unwrap()
}

#[test]
fn a_full_disk_stores_nothing_by_half() {
    let (folder, community) = site();
    let mut hub = Process::spawn(on_a_small_disk(folder.path(), 1_024)).unwrap();
    let batches: Vec<_> = [500, 1_000, 2_000, 4_000, 16_000, 24_000, 3].into_iter().enumerate().collect();
    let ids: Vec<_> = batches.iter().map(|_| Uuid::now_v7()).collect();
    let (mut stored, mut refused) = (0, Vec::new());
    for ((batch, rows), id) in batches.iter().zip(&ids) {
        let file = visits(*batch, *rows);
        assert!(file.len() < 900 << 10, "{} bytes: the spool would be full before the table is", file.len());
        let heard = push(&hub, &community, *id, PARQUET, &file);
        match (heard.status, heard.slug().as_str()) {
            (201, _) => stored += *rows as u64,
            (422, "resource-limit") => refused.push((*id, file, *rows)),
            _ => panic!("{rows} rows: {} {}", heard.status, text(&heard.body)),
        }
        assert!(hub.is_up());
    }
    assert!(refused.len() >= 2 && stored >= 3_503, "{} refused, {stored} rows stored", refused.len());
    assert_eq!(count(&hub, &community), stored, "what was refused is not there");
    hub.kill();

    // Room again: nothing is missing, and what was refused comes in under the same ids.
    assert_whole_log(folder.path());
    let hub = Process::start(folder.path());
    assert_eq!(count(&hub, &community), stored);
    for (id, file, rows) in refused {
        let heard = push(&hub, &community, id, PARQUET, &file);
        assert_eq!((heard.status, heard.json()["rows_accepted"].clone()), (201, json!(rows)));
        stored += rows as u64;
    }
    assert_eq!(count(&hub, &community), stored);
    hub.stop();
    assert_whole_log(folder.path());
}

#[test]
fn a_body_that_finds_no_room_to_wait_in_is_refused() {
    let (folder, community) = site();
    let hub = Process::spawn(on_a_small_disk(folder.path(), 1_024)).unwrap();
    let row = |row: usize| {
        let remark = "慢".repeat(2_000);
        format!("L{row},420191001001001,,,,,,2026-01-05 10:00:00,入户,36.5,,,{remark}\n")
    };
    let long = format!("{HEADER}\n{}", (0..400).map(row).collect::<String>());
    let heard = push(&hub, &community, Uuid::now_v7(), CSV, long.as_bytes());
    assert_eq!((heard.status, heard.slug()), (422, "resource-limit".into()), "{}", text(&heard.body));
    let short = format!("{HEADER}\n{}", row(0));
    assert_eq!(push(&hub, &community, Uuid::now_v7(), CSV, short.as_bytes()).status, 201);
    assert_eq!(count(&hub, &community), 1);
}

/// A log that cannot grow answers nothing, and what it said before still verifies.
#[test]
fn a_log_without_room_answers_nothing() {
    let (folder, community) = site();
    let entries = folder.path().join("data/log/entries");
    let size = |path: &Path| path.metadata().unwrap().len();
    let hub = Process::start(folder.path());
    // An empty file is refused and leaves an entry in the log and nothing elsewhere: in the end no file is larger.
    let refuse = |hub: &Process| push(hub, &community, Uuid::now_v7(), CSV, &[]);
    let database = folder.path().join("data/metadata.sqlite");
    while size(&entries) < size(&database) + (64 << 10) {
        assert_eq!(refuse(&hub).slug(), "contract-violation");
    }
    hub.stop();
    let mut hub = Process::spawn(on_a_small_disk(folder.path(), size(&entries).div_ceil(1_024) + 4)).unwrap();
    let refused = (0..200).map(|_| refuse(&hub)).find(|heard| heard.status != 422).expect("the log has an end");
    assert_eq!((refused.status, refused.slug()), (503, "log-unavailable".into()), "{}", text(&refused.body));
    let file = format!("{HEADER}\nV1,420191001001001,,,,,,2026-01-05 10:00:00,入户,36.5,,,\n");
    let id = Uuid::now_v7();
    let pushed = push(&hub, &community, id, CSV, file.as_bytes());
    assert_eq!((pushed.status, pushed.slug()), (503, "log-unavailable".into()), "{}", text(&pushed.body));
    let asked = hub.ask(&community, "SELECT count(*) FROM visits").unwrap();
    assert_eq!((asked.status, asked.slug()), (503, "log-unavailable".into()), "{}", text(&asked.body));
    assert!(hub.is_up());
    hub.kill();

    assert_whole_log(folder.path());
    let hub = Process::start(folder.path());
    let again = push(&hub, &community, id, CSV, file.as_bytes());
    // The last block may have had room for the batch's first entry and none for its second; then it was stored,
    // not acknowledged, and settled by the new start.
    assert!(matches!(again.status, 200 | 201), "{}", text(&again.body));
    assert_eq!((again.json()["rows_accepted"].clone(), count(&hub, &community)), (json!(1), 1));
}

/// Starts the hub of a folder, which must refuse and say where the fault is.
fn assert_refused(command: Command, place: &Path) {
    match Process::spawn(command) {
        Ok(_) => panic!("started although {} is unusable", place.display()),
        Err(Ended { status, said }) => {
            assert_eq!(status, Some(1), "{}: {said}", place.display());
            assert!(said.contains(place.to_str().unwrap()), "{}: {said}", place.display());
            assert!(!said.contains("panicked"), "{}: {said}", place.display());
        }
    }
}

#[test]
fn a_file_where_a_folder_should_be_is_named() {
    for place in ["data", "keys", "data/tables", "data/tables/cdc.cases", "data/log", "data/spool"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "not a folder").unwrap();
        assert_refused(serve(folder.path()), &path);
        assert_eq!(fs::read(&path).unwrap(), b"not a folder", "{place} was overwritten");
    }
}

#[test]
fn a_folder_where_a_file_should_be_is_named() {
    for (place, named) in [
        ("data/metadata.sqlite", "data/metadata.sqlite"),
        ("data/hub.lock", "data/hub.lock"),
        ("data/log/entries", "data/log"),
        ("data/log/checkpoint", "data/log"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join(place)).unwrap();
        assert_refused(serve(folder.path()), &folder.path().join(named));
    }
}

/// A hub that may read its folder and not write it. Whoever is root may write everywhere, so the hub runs as
/// another user then.
#[test]
fn a_folder_that_cannot_be_written_is_named_and_left_as_it_is() {
    let (folder, _) = site();
    let whole = |folder: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        files_below(folder).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    for name in ["schemas", "policies"] {
        copy(&repository().join(name), &folder.path().join(name));
    }
    let (data, program) = (folder.path().join("data"), folder.path().join("gridhub"));
    let built = Path::new(env!("CARGO_BIN_EXE_gridhub"));
    // Where the tests are built, others may not look.
    fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).unwrap();
    let before = whole(&data);
    // The program's mode is that of the one built, with which it may share its file.
    let places = || everything_below(folder.path()).into_iter().filter(|path| *path != program);
    for path in places() {
        let mode = if path.is_dir() { 0o555 } else { 0o444 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let root = Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n");
    let mut command = match root {
        true => {
            let mut command = plain(Command::new("setpriv"));
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
            command
        }
        false => plain(Command::new(&program)),
    };
    command.args(serving(folder.path())).current_dir(folder.path());
    let refused = Process::spawn(command);
    let after = whole(&data);
    for path in places() {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let Err(Ended { status, said }) = refused else { panic!("a hub started on a folder it cannot write") };
    assert_eq!(status, Some(1), "setpriv is needed where tests run as root: {said}");
    assert!(said.contains(data.to_str().unwrap()), "{said}");
    assert!(said.to_lowercase().contains("permission denied"), "{said}");
    assert!(before == after, "files changed");
}

/// The folder itself, and all files and folders below, each folder before what lies in it.
fn everything_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(everything_below(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn a_second_hub_on_the_folder_is_refused_and_the_first_goes_on() {
    let (folder, community) = site();
    let hub = Process::start(folder.path());
    for _ in 0..2 {
        let Err(Ended { status, said }) = Process::spawn(serve(folder.path())) else { panic!("two hubs") };
        assert_eq!(status, Some(1));
        assert!(said.contains("another hub is running on this data folder"), "{said}");
    }
    let file = format!("{HEADER}\nV1,420191001001001,,,,,,2026-01-05 10:00:00,入户,36.5,,,\n");
    assert_eq!(push(&hub, &community, Uuid::now_v7(), CSV, file.as_bytes()).status, 201);
    assert_eq!(count(&hub, &community), 1);
    hub.kill();
    assert_eq!(count(&Process::start(folder.path()), &community), 1, "a lock of the dead holds nobody up");
}
