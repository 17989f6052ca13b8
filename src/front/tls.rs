//! TLS as the doors speak it: the hub's certificate and key, and whose client certificates count, but for those that
//! were taken back. Follows its files when they are renewed, without a restart. Knows no protocol above it and nobody's
//! name.

mod end_point;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    error::{Error, Result},
    followed::Followed,
    identity::revocation,
    keys::folder::read as read_secret,
};

/// How often the log says that a list of certificates that were taken back has ended.
const COMPLAINT: Duration = Duration::from_secs(300);

/// TLS 1.2 and 1.3 with a certificate chain, its key, and the client certificates that are taken. Cheap to clone; all
/// clones follow the files together.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: Arc<Files>,
    followed: Followed<Served>,
    complained: Mutex<Option<Instant>>,
}

/// The files, all PEM.
#[derive(Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    clients: Clients,
    /// Which certificates of clients were taken back.
    revocations: Option<PathBuf>,
}

/// Whose certificates clients may show, and whether they must.
#[derive(Clone)]
enum Clients {
    Nobody,
    Optional(PathBuf),
    Required(PathBuf),
}

/// What connections get, until the files change.
#[derive(Clone)]
struct Served {
    config: Arc<ServerConfig>,
    /// What logins over these connections can be bound to.
    end_point: Option<Vec<u8>>,
    /// When the first of the lists of certificates that were taken back ends.
    lists_end: Option<DateTime<Utc>>,
}

impl Tls {
    /// Reads the hub's certificate chain and key and, where certificates of clients are taken, the roots that sign
    /// those. Clients may show one; without one they need a token.
    ///
    /// # Errors
    /// [`Error::Setup`] naming the file that cannot be read or used, or the key that others can read.
    pub fn open(certificate: &Path, key: &Path, client_roots: Option<&Path>) -> Result<Self> {
        let clients = client_roots.map_or(Clients::Nobody, |roots| Clients::Optional(roots.to_owned()));
        Self::of(Files { certificate: certificate.to_owned(), key: key.to_owned(), clients, revocations: None })
    }

    /// The same for clients with a certificate only; nobody else gets through the handshake.
    ///
    /// # Errors
    /// As [`Tls::open`].
    pub fn open_to_certificates_only(certificate: &Path, key: &Path, client_roots: &Path) -> Result<Self> {
        let clients = Clients::Required(client_roots.to_owned());
        Self::of(Files { certificate: certificate.to_owned(), key: key.to_owned(), clients, revocations: None })
    }

    /// The same where certificates of clients do not get through the handshake that a list of their issuer takes back,
    /// or a list of who signed one between them and the root (CRLs of RFC 5280). Of an issuer without a list nothing is
    /// known and nothing assumed. Once the list that an issuer has is at its end, none of its certificates gets through:
    /// any of them may have been taken back since.
    ///
    /// # Errors
    /// As [`Tls::open`].
    pub fn with_revocations(&self, lists: &Path) -> Result<Self> {
        let files = Files::clone(&self.0.files);
        Self::of(Files { revocations: Some(lists.to_owned()), ..files })
    }

    fn of(files: Files) -> Result<Self> {
        let files = Arc::new(files);
        let reading = Arc::clone(&files);
        let followed = Followed::open(files.paths(), move || reading.read())?;
        Ok(Self(Arc::new(Shared { files, followed, complained: Mutex::default() })))
    }

    /// Has the files looked at for the next connection, for who knows that one was renewed just now.
    pub fn look_again(&self) {
        self.0.followed.look_again();
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
        let Served { config, end_point, .. } = self.served();
        let mut config = ServerConfig::clone(&config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        (TlsAcceptor::from(Arc::new(config)), end_point)
    }

    /// The configuration as the files have it.
    fn served(&self) -> Served {
        let served = self.0.followed.current();
        if let Some(end) = served.lists_end.filter(|end| *end <= Utc::now()) {
            self.complain(end);
        }
        served
    }

    /// Those who run the hub should hear why certificates of a whole issuer are refused.
    fn complain(&self, ended: DateTime<Utc>) {
        let mut complained = self.0.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_some_and(|last| last.elapsed() < COMPLAINT) {
            return;
        }
        *complained = Some(Instant::now());
        let file = self.0.files.revocations.as_deref().unwrap_or(Path::new("")).display();
        tracing::error!(%file, %ended, "a revocation list has ended; its issuer's certificates are refused");
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.files.certificate).finish()
    }
}

impl Files {
    fn paths(&self) -> Vec<PathBuf> {
        let files = [Some(self.certificate.as_path()), Some(self.key.as_path()), self.clients.roots()];
        let files = files.into_iter().chain([self.revocations.as_deref()]);
        files.flatten().map(Path::to_owned).collect()
    }

    fn read(&self) -> Result<Served> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&self.certificate)?;
        let key = private_key(&self.key)?;
        let end_point = chain.first().and_then(end_point::of);
        let lists = self.revocations.as_deref().map(revocation::read).transpose()?.unwrap_or_default();
        let lists_end = lists.iter().filter_map(revocation::end).min();
        let verifier = self.verifier(lists, &provider)?;
        // With each configuration the sessions that can be resumed begin anew: nobody gets around a list by going on
        // with one whose handshake was before it.
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::internal)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| Error::setup(&self.certificate, None, format!("cannot be used with its key: {e}")))?;
        Ok(Served { config: Arc::new(config), end_point, lists_end })
    }

    fn verifier(
        &self,
        lists: Vec<CertificateRevocationListDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>> {
        let Some(file) = self.clients.roots() else { return Ok(WebPkiClientVerifier::no_client_auth()) };
        let unusable = |e: &dyn fmt::Display| Error::setup(file, None, format!("holds no usable root: {e}"));
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|e| unusable(&e))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let verifier = match self.clients {
            Clients::Required(_) => verifier,
            _ => verifier.allow_unauthenticated(),
        };
        let verifier = verifier.with_crls(lists).allow_unknown_revocation_status().enforce_revocation_expiration();
        verifier.build().map_err(|e| match (e, self.revocations.as_deref()) {
            (VerifierBuilderError::InvalidCrl(_), Some(lists)) => Error::setup(
                lists,
                None,
                "holds a list that cannot be used; it must be whole, say when the next comes, and be no delta",
            ),
            (e, _) => unusable(&e),
        })
    }
}

impl Clients {
    fn roots(&self) -> Option<&Path> {
        match self {
            Self::Nobody => None,
            Self::Optional(roots) | Self::Required(roots) => Some(roots),
        }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedKey, DnType,
        ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, date_time_ymd,
    };
    use ring::digest::{SHA256, digest};
    use rustls::{ClientConfig, HandshakeKind, pki_types::ServerName};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::TlsConnector;

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
        tls.look_again();
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

    /// Who signs certificates of clients.
    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        root: String,
    }

    impl Authority {
        fn new(name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate().unwrap();
            let root = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::new(params, key), root }
        }

        /// Who shows a certificate of that number to the hub with that certificate.
        fn client(&self, number: u64, hub: &CertificateDer<'static>) -> Arc<ClientConfig> {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
            params.serial_number = Some(number.into());
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let shown = params.signed_by(&key, &self.issuer).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(hub.clone()).unwrap();
            let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![shown.der().clone()], key)
                .unwrap();
            Arc::new(config)
        }

        /// The list of what it has taken back, until the end of that year.
        fn list(&self, numbers: &[u64], year: i32) -> String {
            let revoked = numbers.iter().map(|number| RevokedCertParams {
                serial_number: (*number).into(),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            });
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2020, 1, 1),
                next_update: date_time_ymd(year, 12, 31),
                crl_number: 1_u64.into(),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&self.issuer).unwrap().pem().unwrap()
        }
    }

    /// How the hub's side of a handshake ends, and of a word after it, by which a client can come again.
    async fn shake(tls: &Tls, client: &Arc<ClientConfig>) -> io::Result<Option<HandshakeKind>> {
        let (ours, theirs) = duplex(64 << 10);
        let (acceptor, connector) = (tls.acceptor(&[]), TlsConnector::from(Arc::clone(client)));
        let name = ServerName::try_from("hub.example").unwrap();
        let (accepted, connected) = tokio::join!(acceptor.accept(ours), connector.connect(name, theirs));
        let (mut accepted, mut connected) = (accepted?, connected.unwrap());
        accepted.write_all(b"!").await?;
        accepted.flush().await?;
        connected.read_exact(&mut [0]).await.unwrap();
        Ok(accepted.get_ref().1.handshake_kind())
    }

    #[tokio::test]
    async fn certificates_that_were_taken_back_do_not_get_through() {
        let (folder, hub) = folder();
        let path = |name: &str| folder.path().join(name);
        let (ours, unlisted) = (Authority::new("ours"), Authority::new("unlisted"));
        fs::write(path("roots.pem"), ours.root.clone() + &unlisted.root).unwrap();
        let tls = Tls::open(&path("hub.pem"), &path("hub.key"), Some(&path("roots.pem"))).unwrap();
        fs::write(path("lists.pem"), ours.list(&[7], 2099)).unwrap();
        let tls = tls.with_revocations(&path("lists.pem")).unwrap();
        let (taken_back, other, elsewhere) = (ours.client(7, &hub), ours.client(8, &hub), unlisted.client(7, &hub));
        assert!(shake(&tls, &taken_back).await.is_err());
        assert_eq!(shake(&tls, &other).await.unwrap(), Some(HandshakeKind::Full));
        assert_eq!(shake(&tls, &other).await.unwrap(), Some(HandshakeKind::Resumed));
        shake(&tls, &elsewhere).await.unwrap();
        // A broken list is not used, and the one before stays in use.
        fs::write(path("lists.pem"), "half a list").unwrap();
        tls.look_again();
        assert!(shake(&tls, &taken_back).await.is_err());
        shake(&tls, &other).await.unwrap();
        // Who was let in before is not let in again, though its client could go on with the session it had.
        fs::write(path("lists.pem"), ours.list(&[7, 8], 2099)).unwrap();
        tls.look_again();
        assert!(shake(&tls, &other).await.is_err());
        shake(&tls, &elsewhere).await.unwrap();
    }

    #[tokio::test]
    async fn lists_that_ended_or_are_of_somebody_else_let_nobody_in() {
        let (folder, hub) = folder();
        let path = |name: &str| folder.path().join(name);
        let (ours, unlisted) = (Authority::new("ours"), Authority::new("unlisted"));
        fs::write(path("roots.pem"), ours.root.clone() + &unlisted.root).unwrap();
        let open = || {
            let roots = path("roots.pem");
            let tls = Tls::open_to_certificates_only(&path("hub.pem"), &path("hub.key"), &roots).unwrap();
            tls.with_revocations(&path("lists.pem"))
        };
        // By its name it is ours.
        for list in [ours.list(&[], 2021), Authority::new("ours").list(&[], 2099)] {
            fs::write(path("lists.pem"), list).unwrap();
            let tls = open().unwrap();
            assert!(tls.is_for_certificates_only());
            assert!(shake(&tls, &ours.client(7, &hub)).await.is_err());
            shake(&tls, &unlisted.client(7, &hub)).await.unwrap();
        }
        let refused = |what: &str| open().unwrap_err().to_string().contains(what);
        fs::write(path("lists.pem"), "no list").unwrap();
        assert!(refused("lists.pem: holds no revocation list"));
        fs::write(path("lists.pem"), "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").unwrap();
        assert!(refused("lists.pem: holds a list that cannot be used"));
        fs::remove_file(path("lists.pem")).unwrap();
        assert!(refused("lists.pem: cannot be read"));
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
