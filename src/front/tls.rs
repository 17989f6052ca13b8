//! TLS as the doors speak it: the hub's certificate and key, and whose client certificates count. Follows its files
//! when they are renewed, without a restart. Knows no protocol above it and nobody's name.

mod end_point;

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    error::{Error, Result},
    keys::folder::read as read_secret,
};

/// How often the files are looked at, at most: a look asks the disk for three dates.
const LOOK: Duration = Duration::from_secs(30);

/// TLS 1.2 and 1.3 with a certificate chain, its key, and the client certificates that are taken. Cheap to clone; all
/// clones follow the files together.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: Files,
    current: Mutex<Current>,
}

/// The files, all PEM.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    clients: Clients,
}

/// Whose certificates clients may show, and whether they must.
enum Clients {
    Nobody,
    Optional(PathBuf),
    Required(PathBuf),
}

struct Current {
    served: Served,
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
}

/// What connections get, until the files change.
#[derive(Clone)]
struct Served {
    config: Arc<ServerConfig>,
    /// What logins over these connections can be bound to.
    end_point: Option<Vec<u8>>,
}

/// What changes with a file that is replaced or written anew.
#[derive(PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl Tls {
    /// Reads the hub's certificate chain and key and, where certificates of clients are taken, the roots that sign
    /// those. Clients may show one; without one they need a token.
    ///
    /// # Errors
    /// [`Error::Setup`] naming the file that cannot be read or used, or the key that others can read.
    pub fn open(certificate: &Path, key: &Path, client_roots: Option<&Path>) -> Result<Self> {
        let clients = client_roots.map_or(Clients::Nobody, |roots| Clients::Optional(roots.to_owned()));
        Self::of(Files { certificate: certificate.to_owned(), key: key.to_owned(), clients })
    }

    /// The same for clients with a certificate only; nobody else gets through the handshake.
    ///
    /// # Errors
    /// As [`Tls::open`].
    pub fn open_to_certificates_only(certificate: &Path, key: &Path, client_roots: &Path) -> Result<Self> {
        let clients = Clients::Required(client_roots.to_owned());
        Self::of(Files { certificate: certificate.to_owned(), key: key.to_owned(), clients })
    }

    fn of(files: Files) -> Result<Self> {
        // Before the files are read: what changes in between is seen at the next look.
        let stamps = files.stamps();
        let served = files.read()?;
        let current = Mutex::new(Current { served, stamps, looked: Instant::now() });
        Ok(Self(Arc::new(Shared { files, current })))
    }

    /// Whether nobody gets through the handshake without a certificate.
    pub fn is_for_certificates_only(&self) -> bool {
        matches!(self.0.files.clients, Clients::Required(_))
    }

    /// What takes one connection's handshake, for a protocol above that is one of these (by ALPN, in order of
    /// preference); any where there are none.
    pub fn acceptor(&self, protocols: &[&[u8]]) -> TlsAcceptor {
        self.bindable_acceptor(protocols).0
    }

    /// The same, with what a login over the connection can be bound to, so that nobody in between can pass it on: the
    /// hash of the certificate that the hub shows in it (`tls-server-end-point` of RFC 5929). Nothing where the
    /// certificate's signature names no hash, as those of Ed25519 do.
    pub fn bindable_acceptor(&self, protocols: &[&[u8]]) -> (TlsAcceptor, Option<Vec<u8>>) {
        let Served { config, end_point } = self.served();
        let mut config = ServerConfig::clone(&config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        (TlsAcceptor::from(Arc::new(config)), end_point)
    }

    /// The configuration as the files have it. What cannot be used leaves the one before in force: a slip in a renewal
    /// should not close the doors.
    fn served(&self) -> Served {
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() < LOOK {
            return current.served.clone();
        }
        current.looked = Instant::now();
        let stamps = self.0.files.stamps();
        if stamps != current.stamps {
            match self.0.files.read() {
                Ok(served) => {
                    current.served = served;
                    tracing::info!("the renewed certificate is in use");
                }
                Err(error) => tracing::warn!(%error, "the changed TLS files are not used; the ones before stay in use"),
            }
            current.stamps = stamps;
        }
        current.served.clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files.certificate).finish()
    }
}

impl Files {
    fn stamps(&self) -> Vec<Option<Stamp>> {
        let files = [Some(self.certificate.as_path()), Some(self.key.as_path()), self.clients.roots()];
        files.into_iter().flatten().map(stamp).collect()
    }

    fn read(&self) -> Result<Served> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&self.certificate)?;
        let key = private_key(&self.key)?;
        let end_point = chain.first().and_then(end_point::of);
        let verifier = self.clients.verifier(&provider)?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::internal)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| Error::setup(&self.certificate, None, format!("cannot be used with its key: {e}")))?;
        Ok(Served { config: Arc::new(config), end_point })
    }
}

impl Clients {
    fn roots(&self) -> Option<&Path> {
        match self {
            Self::Nobody => None,
            Self::Optional(roots) | Self::Required(roots) => Some(roots),
        }
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>> {
        let Some(file) = self.roots() else { return Ok(WebPkiClientVerifier::no_client_auth()) };
        let unusable = |e: &dyn fmt::Display| Error::setup(file, None, format!("holds no usable root: {e}"));
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|e| unusable(&e))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let verifier = match self {
            Self::Required(_) => verifier,
            _ => verifier.allow_unauthenticated(),
        };
        verifier.build().map_err(|e| unusable(&e))
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(file).map_err(|e| unreadable(file, &e))?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|e| Error::setup(file, None, format!("is no PEM file: {e}")))?;
    match found.is_empty() {
        true => Err(Error::setup(file, None, "holds no certificate; write it as PEM, BEGIN CERTIFICATE first")),
        false => Ok(found),
    }
}

/// The key of a PEM file that nobody else may read.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read_secret(file)?;
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| Error::setup(file, None, "holds no private key; write it as PEM, without a passphrase"))
}

fn unreadable(file: &Path, error: &io::Error) -> Error {
    Error::setup(file, None, format!("cannot be read: {error}"))
}

fn stamp(file: &Path) -> Option<Stamp> {
    let seen = fs::metadata(file).ok()?;
    Some(Stamp { modified: seen.modified().ok()?, length: seen.len(), inode: seen.ino() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertifiedKey, KeyPair};
    use ring::digest::{SHA256, digest};
    use tempfile::TempDir;

    use super::*;

    /// A folder with `hub.pem` and `hub.key`, and the certificate in it.
    fn folder() -> (TempDir, CertificateDer<'static>) {
        let folder = tempfile::tempdir().unwrap();
        let certificate = renew(folder.path());
        (folder, certificate)
    }

    fn renew(folder: &Path) -> CertificateDer<'static> {
        // So that the clock of the file system has moved on since the files were written last.
        std::thread::sleep(Duration::from_millis(20));
        let made: CertifiedKey<KeyPair> = rcgen::generate_simple_self_signed(vec!["hub.example".to_owned()]).unwrap();
        fs::write(folder.join("hub.pem"), made.cert.pem()).unwrap();
        write_key(&folder.join("hub.key"), &made.signing_key.serialize_pem());
        made.cert.der().clone()
    }

    fn write_key(file: &Path, text: &str) {
        let _ = fs::remove_file(file);
        fs::write(file, text).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn open(folder: &Path) -> Result<Tls> {
        Tls::open(&folder.join("hub.pem"), &folder.join("hub.key"), None)
    }

    fn look_again(tls: &Tls) -> Arc<ServerConfig> {
        let long_ago = Instant::now().checked_sub(LOOK * 2).unwrap();
        tls.0.current.lock().unwrap().looked = long_ago;
        tls.served().config
    }

    #[test]
    fn files_that_do_not_do_are_named() {
        let (folder, _) = folder();
        let path = folder.path();
        assert!(open(path).is_ok());
        let refused = |what: &str| open(path).unwrap_err().to_string().contains(what);
        fs::set_permissions(path.join("hub.key"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused("hub.key: can be read by others (mode 640); run chmod 600 on it"));
        write_key(&path.join("hub.key"), &KeyPair::generate().unwrap().serialize_pem());
        assert!(refused("hub.pem: cannot be used with its key"));
        write_key(&path.join("hub.key"), "no key");
        assert!(refused("hub.key: holds no private key"));
        renew(path);
        fs::write(path.join("hub.pem"), "no certificate").unwrap();
        assert!(refused("hub.pem: holds no certificate"));
        fs::remove_file(path.join("hub.pem")).unwrap();
        assert!(refused("hub.pem: cannot be read"));
        renew(path);
        fs::write(path.join("roots.pem"), "none").unwrap();
        let (certificate, key, roots) = (path.join("hub.pem"), path.join("hub.key"), path.join("roots.pem"));
        let said = Tls::open(&certificate, &key, Some(&roots)).unwrap_err().to_string();
        assert!(said.contains("roots.pem: holds no certificate"), "{said}");
        assert!(Tls::open_to_certificates_only(&certificate, &key, &roots).is_err());
    }

    #[test]
    fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
        let (folder, _) = folder();
        let tls = open(folder.path()).unwrap();
        let first = tls.served().config;
        assert!(Arc::ptr_eq(&first, &look_again(&tls)), "nothing changed");
        renew(folder.path());
        assert!(Arc::ptr_eq(&first, &tls.served().config), "it is not time to look yet");
        let second = look_again(&tls);
        assert!(!Arc::ptr_eq(&first, &second));
        fs::write(folder.path().join("hub.pem"), "half a certificate").unwrap();
        assert!(Arc::ptr_eq(&second, &look_again(&tls)), "a broken file is in use");
        renew(folder.path());
        assert!(!Arc::ptr_eq(&second, &look_again(&tls)), "mended files are not used");
    }

    #[test]
    fn what_logins_are_bound_to_is_the_certificate_in_use() {
        let (folder, first) = folder();
        let tls = open(folder.path()).unwrap();
        let bound = |certificate: &CertificateDer<'_>| Some(digest(&SHA256, certificate).as_ref().to_vec());
        // These certificates are signed with ECDSA over SHA-256.
        assert_eq!(tls.bindable_acceptor(&[]).1, bound(&first));
        let second = renew(folder.path());
        look_again(&tls);
        assert_eq!(tls.bindable_acceptor(&[]).1, bound(&second));
    }

    #[test]
    fn each_protocol_is_offered_by_its_door() {
        let (folder, _) = folder();
        let tls = open(folder.path()).unwrap();
        let offered = |protocols: &[&[u8]]| tls.acceptor(protocols).config().alpn_protocols.clone();
        assert_eq!(offered(&[b"h2", b"http/1.1"]), [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(offered(&[]).is_empty());
    }
}
