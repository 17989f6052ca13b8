//! The folder of keys: which file holds what, and how what wraps them is exchanged.
//!
//! ```text
//! root.wrapped, log-signing.wrapped    the secrets, each naming the key under which it is wrapped
//! wrapping/ID.key                      that key
//! root.key, log-signing.key            the secrets in the clear, as hubs of old made them: they open, and the
//!                                      next rotation wraps them
//! ```
//! INVARIANT: the folder opens, and to the same secrets, whatever step of a rotation was the last: a file takes its
//! place whole, after what it names is on disk, and nothing is removed before what replaces it is.
//!
//! What a rotation gives: copies of the folder from before it are worth nothing to whoever has only a newer wrapping
//! key, and the other way round. Who copied both at one time has the secrets. Removed keys are overwritten, which
//! drives that move what is written, and snapshots of file systems, make void.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use zeroize::Zeroizing;

use super::{
    Secret,
    wrapping::{KeyId, WrappingKey},
};
use crate::error::{Error, Result};

/// The secret from which every other key is derived.
pub const ROOT: &str = "root";

/// The seed of the key that signs the log.
pub const SIGNING: &str = "log-signing";

const SECRETS: [&str; 2] = [ROOT, SIGNING];

/// A folder of keys, held: nobody else reads it or rotates its keys until this is dropped.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

/// A file of the folder, without what is in it.
pub struct Listed {
    /// Its place in the folder.
    pub name: String,
    /// The permission bits.
    pub mode: u32,
    /// When it was written.
    pub since: DateTime<Utc>,
    /// What it holds.
    pub holds: Holds,
}

/// What a file of the folder holds.
pub enum Holds {
    /// A secret, wrapped under that key.
    Wrapped(KeyId),
    /// A secret in the clear.
    Clear,
    /// A key that wraps these secrets. Where there are none, a rotation was cut short; the next one removes it.
    Wraps(Vec<&'static str>),
}

impl Folder {
    /// Holds the folder, waiting for others to let go of it.
    ///
    /// # Errors
    /// [`Error::Setup`] where there is none, or it cannot be locked.
    pub fn hold(path: &Path) -> Result<Self> {
        let fault = |e: io::Error| Error::setup(path, None, format!("cannot hold the folder of keys: {e}"));
        if !path.is_dir() {
            return Err(no_keys(path));
        }
        let lock = File::open(path).map_err(fault)?;
        lock.lock().map_err(fault)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Whether both secrets are there, in whatever form.
    ///
    /// # Errors
    /// Where that cannot be seen.
    pub fn is_whole(&self) -> Result<bool> {
        Ok(self.missing()?.is_empty())
    }

    /// Makes the secrets that are missing.
    ///
    /// # Errors
    /// [`Error::Setup`] where they cannot be written.
    pub fn make_missing(&self) -> Result<()> {
        let made: Vec<_> =
            self.missing()?.into_iter().map(|name| Ok((name, Secret::random()?))).collect::<Result<_>>()?;
        if made.is_empty() {
            return Ok(());
        }
        let (_, steps) = self.wrap_anew(&made)?;
        steps.into_iter().try_for_each(Step::take)
    }

    /// A secret.
    ///
    /// # Errors
    /// [`Error::Setup`] where it is missing, altered, no secret at all or open to others, or where the key under which
    /// it is wrapped is.
    pub fn secret(&self, name: &'static str) -> Result<Secret> {
        let file = self.wrapped(name);
        if !is_there(&file)? {
            return read_key(&self.clear(name));
        }
        let wrapped = read(&file)?;
        let id = named_in(&file, &wrapped)?;
        let key = self.wrapping_key(id, name)?;
        key.open(name, &wrapped).ok_or_else(|| {
            let why = format!(
                "was altered or wrapped for something else, it does not open under wrapping/{id}.key; restore it from \
                 a backup"
            );
            Error::setup(&file, None, why)
        })
    }

    /// All files that hold a key, wrapped or not.
    ///
    /// # Errors
    /// [`Error::Setup`] where one of them cannot be seen, or is not what its name says.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let (mut listed, mut named) = (Vec::new(), Vec::new());
        for name in SECRETS {
            let (wrapped, clear) = (self.wrapped(name), self.clear(name));
            if is_there(&wrapped)? {
                let id = named_in(&wrapped, &read_any(&wrapped)?)?;
                named.push((id.to_string(), name));
                listed.push(self.listed(&wrapped, Holds::Wrapped(id))?);
            }
            if is_there(&clear)? {
                listed.push(self.listed(&clear, Holds::Clear)?);
            }
        }
        for file in self.wrapping_keys()? {
            let stem = file.file_stem().and_then(OsStr::to_str).unwrap_or_default();
            let wraps = named.iter().filter(|(id, _)| id == stem).map(|(_, name)| *name).collect();
            listed.push(self.listed(&file, Holds::Wraps(wraps))?);
        }
        match listed.is_empty() {
            true => Err(no_keys(&self.path)),
            false => Ok(listed),
        }
    }

    fn listed(&self, file: &Path, holds: Holds) -> Result<Listed> {
        let seen = fs::metadata(file).map_err(|e| unreadable(file, &e))?;
        let since = seen.modified().map_err(|e| unreadable(file, &e))?.into();
        let name = file.strip_prefix(&self.path).unwrap_or(file).display().to_string();
        Ok(Listed { name, mode: seen.mode() & 0o777, since, holds })
    }

    fn missing(&self) -> Result<Vec<&'static str>> {
        let mut missing = Vec::new();
        for name in SECRETS {
            if !is_there(&self.wrapped(name))? && !is_there(&self.clear(name))? {
                missing.push(name);
            }
        }
        Ok(missing)
    }

    fn wrapping_key(&self, id: KeyId, needed_by: &str) -> Result<WrappingKey> {
        let file = self.wrapping_file(id);
        if !is_there(&file)? {
            let why = format!("is missing, and {needed_by}.wrapped opens under no other key; restore it from a backup");
            return Err(Error::setup(&file, None, why));
        }
        let key = WrappingKey::new(&read_key(&file)?)?;
        match key.id() == id {
            true => Ok(key),
            false => Err(Error::setup(&file, None, "holds another key than its name says; restore it from a backup")),
        }
    }

    /// A new wrapping key, and the steps by which these secrets come to lie wrapped under it.
    fn wrap_anew(&self, secrets: &[(&'static str, Secret)]) -> Result<(KeyId, Vec<Step>)> {
        let bytes = Secret::random()?;
        let key = WrappingKey::new(&bytes)?;
        let file = self.wrapping_file(key.id());
        let mut steps = vec![
            Step::MakeFolder(self.wrapping()),
            Step::Write(file.clone(), Zeroizing::new(bytes.uncover().to_vec())),
            Step::Name(file),
            Step::Flush(self.wrapping()),
            Step::Flush(self.path.clone()),
        ];
        for (name, secret) in secrets {
            let file = self.wrapped(name);
            steps.push(Step::Write(file.clone(), Zeroizing::new(key.wrap(name, secret)?)));
            steps.push(Step::Name(file));
        }
        steps.push(Step::Flush(self.path.clone()));
        Ok((key.id(), steps))
    }

    /// Every key in the folder of wrapping keys, and what writing one left behind.
    fn wrapping_keys(&self) -> Result<Vec<PathBuf>> {
        let folder = self.wrapping();
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| unreadable(&folder, &e))?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let file = entry.map_err(|e| unreadable(&folder, &e))?.path();
            let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if name.ends_with(".key") || name.ends_with(".key.new") {
                files.push(file);
            }
        }
        files.sort();
        Ok(files)
    }

    fn wrapped(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.wrapped"))
    }

    fn clear(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.key"))
    }

    fn wrapping(&self) -> PathBuf {
        self.path.join("wrapping")
    }

    fn wrapping_file(&self, id: KeyId) -> PathBuf {
        self.wrapping().join(format!("{id}.key"))
    }
}

/// An exchange of the wrapping key: the secrets are wrapped under a new one, and the old ones removed. The secrets stay
/// as they are, so a hub that runs on them goes on and notices nothing.
pub struct Rotation {
    key: KeyId,
    steps: VecDeque<Step>,
    _folder: Folder,
}

impl Rotation {
    /// Makes the new key, in memory; the folder is as it was, and held until this is dropped.
    ///
    /// # Errors
    /// As [`Folder::hold`] and [`Folder::secret`]: only a folder that opens is rotated.
    pub fn begin(path: &Path) -> Result<Self> {
        let folder = Folder::hold(path)?;
        if !folder.is_whole()? {
            return Err(no_keys(path));
        }
        let secrets = [(ROOT, folder.secret(ROOT)?), (SIGNING, folder.secret(SIGNING)?)];
        let (key, mut steps) = folder.wrap_anew(&secrets)?;
        let mut old = folder.wrapping_keys()?;
        for name in SECRETS {
            old.extend(Some(folder.clear(name)).filter(|file| file.exists()));
        }
        for file in old {
            steps.push(Step::Blank(file.clone()));
            steps.push(Step::Remove(file));
        }
        steps.push(Step::Flush(folder.wrapping()));
        steps.push(Step::Flush(path.to_owned()));
        Ok(Self { key, steps: steps.into(), _folder: folder })
    }

    /// The id of the new key.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// Takes all steps. A rotation that fails in between leaves a folder that opens; the next one clears up.
    ///
    /// # Errors
    /// [`Error::Setup`] naming the file that could not be written or removed.
    pub fn run(mut self) -> Result<()> {
        while let Some(step) = self.steps.pop_front() {
            step.take()?;
        }
        Ok(())
    }
}

/// One change of the folder, on disk when it is taken (a name with the next [`Step::Flush`] of its folder).
enum Step {
    /// A folder of that name, for nobody else to look into.
    MakeFolder(PathBuf),
    /// The bytes lie beside the file.
    Write(PathBuf, Zeroizing<Vec<u8>>),
    /// What lies beside the file takes its place.
    Name(PathBuf),
    /// The names in a folder are on disk.
    Flush(PathBuf),
    /// A key is overwritten by zeros.
    Blank(PathBuf),
    /// A file is gone.
    Remove(PathBuf),
}

impl Step {
    fn take(self) -> Result<()> {
        let (file, done) = match &self {
            Self::MakeFolder(folder) => (folder, DirBuilder::new().recursive(true).mode(0o700).create(folder)),
            Self::Write(file, bytes) => (file, write(&beside(file), bytes)),
            Self::Name(file) => (file, fs::rename(beside(file), file)),
            Self::Flush(folder) => (folder, File::open(folder).and_then(|folder| folder.sync_all())),
            Self::Blank(file) => (file, blank(file)),
            Self::Remove(file) => (file, fs::remove_file(file)),
        };
        done.map_err(|e| Error::setup(file, None, format!("cannot be written or removed: {e}; the keys are whole")))
    }
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    // What an earlier try left behind.
    match fs::remove_file(file) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(bytes)?;
    out.sync_all()
}

fn blank(file: &Path) -> io::Result<()> {
    let mut out = OpenOptions::new().write(true).open(file)?;
    let length = usize::try_from(out.metadata()?.len()).map_err(io::Error::other)?;
    out.write_all(&vec![0; length])?;
    out.sync_all()
}

fn is_there(file: &Path) -> Result<bool> {
    file.try_exists().map_err(|e| unreadable(file, &e))
}

fn read_any(file: &Path) -> Result<Zeroizing<Vec<u8>>> {
    fs::read(file).map(Zeroizing::new).map_err(|e| unreadable(file, &e))
}

/// A file that nobody else may read, whole.
///
/// # Errors
/// [`Error::Setup`] where others may, or it cannot be read.
pub(crate) fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let mode = fs::metadata(file).map_err(|e| unreadable(file, &e))?.mode();
    if mode & 0o077 != 0 {
        let why = format!("can be read by others (mode {:o}); run chmod 600 on it", mode & 0o777);
        return Err(Error::setup(file, None, why));
    }
    read_any(file)
}

fn read_key(file: &Path) -> Result<Secret> {
    let bytes = read(file)?;
    let fault = |_| Error::setup(file, None, "is no key: it must hold exactly 32 bytes");
    <[u8; 32]>::try_from(bytes.as_slice()).map(Secret).map_err(fault)
}

fn named_in(file: &Path, wrapped: &[u8]) -> Result<KeyId> {
    let fault = || Error::setup(file, None, "holds no wrapped key; restore it from a backup");
    KeyId::named_in(wrapped).ok_or_else(fault)
}

fn unreadable(file: &Path, error: &io::Error) -> Error {
    Error::setup(file, None, format!("cannot read the key: {error}"))
}

fn no_keys(path: &Path) -> Error {
    Error::setup(path, None, "holds no keys of a hub; name their folder with --keys")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keys::Keys;

    const OLD: [(&str, [u8; 32]); 2] = [("root.key", [3; 32]), ("log-signing.key", [4; 32])];

    fn of_old(path: &Path) {
        for (name, bytes) in OLD {
            fs::write(path.join(name), bytes).expect("written");
            fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o600)).expect("mode");
        }
    }

    fn fresh(path: &Path) {
        Folder::hold(path).expect("held").make_missing().expect("made");
    }

    fn secrets(path: &Path) -> Result<[[u8; 32]; 2]> {
        let folder = Folder::hold(path)?;
        Ok([*folder.secret(ROOT)?.uncover(), *folder.secret(SIGNING)?.uncover()])
    }

    /// All files below the folder.
    fn files(path: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(path).expect("folder") {
            let path = entry.expect("entry").path();
            match path.is_dir() {
                true => files.extend(self::files(&path)),
                false => files.push(path),
            }
        }
        files.sort();
        files
    }

    /// Both secrets under one key, and nothing else.
    fn is_tidy(path: &Path, key: KeyId) {
        let wrapping = format!("wrapping/{key}.key");
        let expected = ["log-signing.wrapped", "root.wrapped", &wrapping].map(|name| path.join(name));
        assert_eq!(files(path), expected);
        for file in expected {
            assert_eq!(fs::metadata(&file).expect("file").mode() & 0o777, 0o600, "{}", file.display());
        }
    }

    #[test]
    fn a_folder_opens_whatever_step_of_a_rotation_was_the_last() {
        for make in [of_old, fresh] {
            // Each stop dies on top of the one before, too, so that leftovers meet leftovers.
            let haunted = tempfile::tempdir().expect("folder");
            make(haunted.path());
            let known = secrets(haunted.path()).expect("secrets");
            let mut stop = 0;
            loop {
                let clean = tempfile::tempdir().expect("folder");
                make(clean.path());
                let cleanly_known = secrets(clean.path()).expect("secrets");
                let mut steps_left = 0;
                for (path, known) in [(clean.path(), cleanly_known), (haunted.path(), known)] {
                    let mut rotation = Rotation::begin(path).expect("begun");
                    for step in rotation.steps.drain(..stop.min(rotation.steps.len())) {
                        step.take().expect("taken");
                    }
                    steps_left += rotation.steps.len();
                    drop(rotation);
                    // What had not taken its place yet may be half there.
                    for file in files(path).iter().filter(|file| file.extension() == Some(OsStr::new("new"))) {
                        let bytes = fs::read(file).expect("bytes");
                        fs::write(file, &bytes[..bytes.len() / 2]).expect("written");
                    }
                    assert!(secrets(path).expect("it opens") == known, "stopped after {stop} steps");
                }
                let rotation = Rotation::begin(clean.path()).expect("begun");
                let key = rotation.key();
                rotation.run().expect("rotated");
                assert!(secrets(clean.path()).expect("it opens") == cleanly_known);
                is_tidy(clean.path(), key);
                if steps_left == 0 {
                    break;
                }
                stop += 1;
            }
            assert!(stop > 12, "{stop}");
            let rotation = Rotation::begin(haunted.path()).expect("begun");
            let key = rotation.key();
            rotation.run().expect("rotated");
            assert!(secrets(haunted.path()).expect("it opens") == known);
            is_tidy(haunted.path(), key);
        }
    }

    #[test]
    fn wrapping_changes_no_secret_and_what_was_there_before_it_does_not_open_any_more() {
        let folder = tempfile::tempdir().expect("folder");
        let (keys, data) = (folder.path().join("keys"), folder.path().join("data"));
        for folder in [&keys, &data] {
            fs::create_dir(folder).expect("folder");
        }
        of_old(&keys);
        let before = Keys::open(&keys, &data, true).expect("keys").fingerprint();
        Rotation::begin(&keys).expect("begun").run().expect("rotated");
        assert_eq!(secrets(&keys).expect("secrets"), OLD.map(|(_, bytes)| bytes));
        assert_eq!(Keys::open(&keys, &data, true).expect("keys").fingerprint(), before);

        let old = fs::read(keys.join("root.wrapped")).expect("bytes");
        Rotation::begin(&keys).expect("begun").run().expect("rotated");
        fs::write(keys.join("root.wrapped"), old).expect("written");
        let said = Keys::open(&keys, &data, true).err().expect("refused").to_string();
        assert!(said.contains(".key: is missing, and root.wrapped opens under no other key"), "{said}");
    }

    #[test]
    fn what_is_open_to_others_or_not_whole_is_not_rotated() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path();
        let refusal = || Rotation::begin(path).err().expect("refused").to_string();
        assert!(refusal().contains("holds no keys of a hub"), "{}", refusal());
        fresh(path);
        let before = files(path);
        let key = before.iter().find(|file| file.parent() != Some(path)).expect("a wrapping key");
        for file in &before {
            fs::set_permissions(file, fs::Permissions::from_mode(0o640)).expect("mode");
            assert!(refusal().contains("can be read by others (mode 640)"), "{}", refusal());
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("mode");
        }
        let bytes = fs::read(key).expect("bytes");
        fs::write(key, [9; 32]).expect("written");
        assert!(refusal().contains("holds another key than its name says"), "{}", refusal());
        fs::write(key, &bytes[1..]).expect("written");
        assert!(refusal().contains("is no key: it must hold exactly 32 bytes"), "{}", refusal());
        fs::write(key, bytes).expect("written");
        // One wrapped secret in the place of the other.
        let (root, signing) = (path.join("root.wrapped"), path.join("log-signing.wrapped"));
        let wrapped = fs::read(&root).expect("bytes");
        fs::copy(&signing, &root).expect("copied");
        assert!(refusal().contains("root.wrapped: was altered or wrapped for something else"), "{}", refusal());
        fs::write(&root, &wrapped[1..]).expect("written");
        assert!(refusal().contains("root.wrapped: holds no wrapped key"), "{}", refusal());
        fs::write(&root, wrapped).expect("written");
        fs::remove_file(&signing).expect("removed");
        assert!(refusal().contains("holds no keys of a hub"), "{}", refusal());
        assert_eq!(files(path).len(), before.len() - 1);
    }
}
