//! What a client certificate says of its holder: names that the policies may give to a caller, when it ends, and a
//! fingerprint for the log. Whether it is to be believed was settled in the handshake; whose the names are is the
//! policy's affair.

use chrono::{DateTime, Utc};
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{ASN1Time, FromDer},
};

use crate::{
    error::{Error, Result},
    hex::hex,
};

/// What tells a certificate from all others, as lists of those that were taken back name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Who issued it: its name, as it is encoded.
    pub(super) issuer: Vec<u8>,
    /// Under which number.
    pub(super) serial: Vec<u8>,
}

/// The names in a certificate as policies write them: `dns:NAME`, `uri:URI` and `email:ADDRESS` of its subject
/// alternative names; where it has none of these, `cn:NAME` of its one common name. Names of hosts are in small letters.
/// Other kinds of names are nobody's.
///
/// # Errors
/// [`Error::Unauthenticated`] where it cannot be read.
pub fn names(certificate: &CertificateDer<'_>) -> Result<Vec<String>> {
    let certificate = read(certificate)?;
    let alternatives = certificate.subject_alternative_name().map_err(|_| Error::Unauthenticated)?;
    let alternatives = alternatives.iter().flat_map(|extension| &extension.value.general_names);
    let names: Vec<_> = alternatives.filter_map(name).collect();
    if !names.is_empty() {
        return Ok(names);
    }
    let mut common = certificate.subject().iter_common_name();
    // Which of several would be meant is anybody's guess.
    match (common.next(), common.next()) {
        (Some(one), None) => Ok(one.as_str().ok().map(|one| format!("cn:{one}")).into_iter().collect()),
        _ => Ok(Vec::new()),
    }
}

/// When a certificate begins to hold and when it ends.
///
/// # Errors
/// [`Error::Unauthenticated`] where it cannot be read.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
    let certificate = read(certificate)?;
    let time = |time: ASN1Time| DateTime::from_timestamp(time.timestamp(), 0).ok_or(Error::Unauthenticated);
    Ok((time(certificate.validity().not_before)?, time(certificate.validity().not_after)?))
}

/// Who issued a certificate, and under which number.
///
/// # Errors
/// [`Error::Unauthenticated`] where it cannot be read.
pub fn issued(certificate: &CertificateDer<'_>) -> Result<Issued> {
    let certificate = read(certificate)?;
    Ok(Issued { issuer: certificate.issuer().as_raw().to_vec(), serial: certificate.raw_serial().to_vec() })
}

/// When a certificate ends.
///
/// # Errors
/// [`Error::Unauthenticated`] where it cannot be read.
pub fn expires(certificate: &CertificateDer<'_>) -> Result<DateTime<Utc>> {
    validity(certificate).map(|(_, end)| end)
}

/// SHA-256 of a certificate in hex, as other tools show it. Tells which one was shown, and nothing that is in it.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(digest(&SHA256, certificate).as_ref())
}

fn read<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).map(|(_, certificate)| certificate).map_err(|_| Error::Unauthenticated)
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(host) => Some(format!("dns:{}", host.to_ascii_lowercase())),
        GeneralName::URI(uri) => Some(format!("uri:{uri}")),
        GeneralName::RFC822Name(address) => Some(format!("email:{address}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};

    use super::*;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn common(params: &mut CertificateParams, name: &str) {
        params.distinguished_name.push(DnType::CommonName, name);
    }

    #[test]
    fn alternative_names_count_before_the_common_name() {
        let both = made(|params| {
            common(params, "uploader");
            params.subject_alt_names = vec![
                SanType::DnsName("Uploader.Community.example".try_into().unwrap()),
                SanType::URI("spiffe://city/Community/uploader".try_into().unwrap()),
                SanType::Rfc822Name("Uploads@community.example".try_into().unwrap()),
                SanType::IpAddress([127, 0, 0, 1].into()),
            ];
        });
        let expected = [
            "dns:uploader.community.example",
            "uri:spiffe://city/Community/uploader",
            "email:Uploads@community.example",
        ];
        assert_eq!(names(&both).unwrap(), expected);
        let address_only = made(|params| {
            common(params, "uploader");
            params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        });
        assert_eq!(names(&address_only).unwrap(), ["cn:uploader"]);
    }

    #[test]
    fn without_names_there_is_none() {
        let nameless = made(|params| params.distinguished_name = rcgen::DistinguishedName::new());
        assert!(names(&nameless).unwrap().is_empty());
        let unreadable = CertificateDer::from(b"no certificate".to_vec());
        assert!(matches!(names(&unreadable), Err(Error::Unauthenticated)));
        assert!(matches!(expires(&unreadable), Err(Error::Unauthenticated)));
        assert!(matches!(issued(&unreadable), Err(Error::Unauthenticated)));
    }

    #[test]
    fn it_holds_from_when_to_when_it_says() {
        let certificate = made(|params| {
            params.not_before = date_time_ymd(2026, 1, 1);
            params.not_after = date_time_ymd(2026, 2, 1);
        });
        let said = validity(&certificate).unwrap();
        assert_eq!(said.0.to_rfc3339(), "2026-01-01T00:00:00+00:00");
        assert_eq!(said.1.to_rfc3339(), "2026-02-01T00:00:00+00:00");
        assert_eq!(expires(&certificate).unwrap(), said.1);
    }

    #[test]
    fn fingerprints_are_those_of_other_tools() {
        // printf abc | sha256sum
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(fingerprint(&CertificateDer::from(b"abc".to_vec())), known);
    }
}
