//! Certificates that were taken back before their end, by the lists of their issuers (CRLs, RFC 5280, section 5). The
//! file they lie in is followed when it is renewed. Whether a list is its issuer's own is looked at in handshakes; here
//! a list only takes away, so one that is not can let nobody in.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::Arc,
};

use chrono::{DateTime, Utc};
use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::certificate::Issued;
use crate::{
    error::{Error, Result},
    followed::Followed,
};

/// Which certificates were taken back, so far as is known. Cheap to clone; all clones follow the file together.
#[derive(Clone, Default)]
pub struct Revocations(Option<Arc<Followed<Arc<Lists>>>>);

/// The lists of a file, by the names of their issuers.
#[derive(Default)]
struct Lists(HashMap<Vec<u8>, List>);

/// What an issuer has taken back.
struct List {
    numbers: HashSet<Vec<u8>>,
    /// From when on the issuer should have said more.
    end: DateTime<Utc>,
}

impl Revocations {
    /// No lists: all certificates hold until they end.
    pub fn none() -> Self {
        Self::default()
    }

    /// The lists of a file, one or more as PEM.
    ///
    /// # Errors
    /// [`Error::Setup`] naming the file that cannot be read or used.
    pub fn open(file: &Path) -> Result<Self> {
        let read = {
            let file = file.to_owned();
            move || Lists::read(&file).map(Arc::new)
        };
        Ok(Self(Some(Arc::new(Followed::open(vec![file.to_owned()], read)?))))
    }

    /// Has the file looked at when it is needed next, for who knows that it was renewed just now.
    pub fn look_again(&self) {
        if let Some(lists) = &self.0 {
            lists.look_again();
        }
    }

    /// Whether a certificate was not taken back. Of an issuer that has no list here nothing is known, and nothing
    /// assumed; one whose list has ended may have taken back anything since, so its certificates do not count.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] where it was taken back, or that cannot be told any more.
    pub(crate) fn check(&self, issued: &Issued, now: DateTime<Utc>) -> Result<()> {
        let Some(lists) = &self.0 else { return Ok(()) };
        let lists = lists.current();
        let Some(list) = lists.0.get(&issued.issuer) else { return Ok(()) };
        match now < list.end && !list.numbers.contains(&issued.serial) {
            true => Ok(()),
            false => Err(Error::Unauthenticated),
        }
    }
}

impl Lists {
    fn read(file: &Path) -> Result<Self> {
        let mut lists = Self::default();
        for list in read(file)? {
            lists.add(&list).ok_or_else(|| {
                Error::setup(file, None, "holds a list that cannot be read, or does not say when the next one comes")
            })?;
        }
        Ok(lists)
    }

    /// Nothing where it cannot be read. What several lists of one issuer take back, each in its scope, is taken back;
    /// all of them must be there and in force.
    fn add(&mut self, list: &CertificateRevocationListDer<'_>) -> Option<()> {
        let (rest, read) = CertificateRevocationList::from_der(list).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let end = end(list)?;
        let numbers = read.iter_revoked_certificates().map(|revoked| revoked.raw_serial().to_vec());
        let of_issuer = self.0.entry(read.issuer().as_raw().to_vec());
        let known = of_issuer.or_insert_with(|| List { numbers: HashSet::new(), end });
        known.numbers.extend(numbers);
        known.end = known.end.min(end);
        Some(())
    }
}

/// The lists of a PEM file, at least one, as they are written.
///
/// # Errors
/// [`Error::Setup`] naming the file.
pub fn read(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let text = fs::read(file).map_err(|e| Error::setup(file, None, format!("cannot be read: {e}")))?;
    let found = CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|e| Error::setup(file, None, format!("is no PEM file: {e}")))?;
    match found.is_empty() {
        true => Err(Error::setup(file, None, "holds no revocation list; write it as PEM, BEGIN X509 CRL first")),
        false => Ok(found),
    }
}

/// When a list ends: when its issuer promises the next. Nothing where it does not say so, or cannot be read.
pub fn end(list: &CertificateRevocationListDer<'_>) -> Option<DateTime<Utc>> {
    let (_, read) = CertificateRevocationList::from_der(list).ok()?;
    DateTime::from_timestamp(read.next_update()?.timestamp(), 0)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, date_time_ymd,
    };

    use super::*;
    use crate::identity::certificate;

    fn authority(name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Issuer::new(params, KeyPair::generate().unwrap())
    }

    fn signed(authority: &Issuer<'static, KeyPair>, number: u64) -> Issued {
        let mut params = CertificateParams::default();
        params.serial_number = Some(number.into());
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), authority).unwrap();
        certificate::issued(certificate.der()).unwrap()
    }

    /// A list of these numbers, until the end of 2026.
    fn list(authority: &Issuer<'static, KeyPair>, numbers: &[u64]) -> String {
        let revoked = numbers.iter().map(|number| RevokedCertParams {
            serial_number: (*number).into(),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2026, 12, 31),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(authority).unwrap().pem().unwrap()
    }

    fn at(time: &str) -> DateTime<Utc> {
        time.parse().unwrap()
    }

    #[test]
    fn what_a_list_names_counts_no_more_and_what_no_list_speaks_of_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lists.pem");
        let (ours, other, unlisted) = (authority("ours"), authority("other"), authority("unlisted"));
        // Numbers whose first bit is set are written with a zero before it.
        let high = u64::MAX - 5;
        fs::write(&file, list(&ours, &[7, high]) + &list(&other, &[8])).unwrap();
        let revocations = Revocations::open(&file).unwrap();
        let (now, later) = (at("2026-06-01T00:00:00Z"), at("2027-01-01T00:00:00Z"));
        let holds = |issued: &Issued, now| revocations.check(issued, now).is_ok();
        for (authority, number, expected) in [
            (&ours, 7, false),
            (&ours, high, false),
            (&ours, 8, true),
            (&other, 8, false),
            (&other, 7, true),
            (&unlisted, 7, true),
        ] {
            assert_eq!(holds(&signed(authority, number), now), expected, "{number}");
        }
        // Once a list has ended, nobody knows what its issuer has taken back since.
        assert!(!holds(&signed(&ours, 9), later));
        assert!(holds(&signed(&unlisted, 7), later));
        assert!(Revocations::none().check(&signed(&ours, 7), now).is_ok());
    }

    #[test]
    fn a_renewed_list_is_followed_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lists.pem");
        let ours = authority("ours");
        let (first, second) = (signed(&ours, 1), signed(&ours, 2));
        let now = at("2026-06-01T00:00:00Z");
        fs::write(&file, list(&ours, &[])).unwrap();
        let revocations = Revocations::open(&file).unwrap();
        let renew = |text: &str| {
            fs::write(&file, text).unwrap();
            revocations.look_again();
            (revocations.check(&first, now).is_ok(), revocations.check(&second, now).is_ok())
        };
        assert!(revocations.check(&first, now).is_ok());
        assert_eq!(renew(&list(&ours, &[1])), (false, true));
        let whole = list(&ours, &[2]);
        for broken in ["", "no list", &whole[..whole.len() / 2]] {
            assert_eq!(renew(broken), (false, true), "{broken}");
        }
        assert_eq!(renew(&list(&ours, &[1, 2])), (false, false));
    }

    #[test]
    fn files_that_do_not_do_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lists.pem");
        let said = || Revocations::open(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(said().contains("lists.pem: cannot be read"), "{}", said());
        fs::write(&file, "no list").unwrap();
        assert!(said().contains("lists.pem: holds no revocation list"), "{}", said());
        fs::write(&file, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").unwrap();
        assert!(said().contains("lists.pem: holds a list that cannot be read"), "{}", said());
    }
}
