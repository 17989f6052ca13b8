//! What a login can be bound to on a TLS connection: `tls-server-end-point` of RFC 5929, section 4, the hash of the
//! server's certificate. Who stands in between shows another certificate, and so what the client proves does not fit.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// The hash of a certificate, by the function of its signature, or SHA-256 where that is MD5 or SHA-1. Nothing where the
/// signature has no hash function of its own (Ed25519), or names it elsewhere (RSASSA-PSS): clients differ in these.
pub(super) fn of(certificate: &CertificateDer<'static>) -> Option<Vec<u8>> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = hash_of(&read.signature_algorithm.algorithm.to_id_string())?;
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

/// The hash function of a signature, by the number of its algorithm.
fn hash_of(signature: &str) -> Option<&'static Algorithm> {
    match signature {
        // RSA with MD5, SHA-1 and SHA-256; ECDSA with SHA-1 and SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => Some(&SHA256),
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Some(&SHA256),
        // RSA and ECDSA with SHA-384.
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(&SHA384),
        // RSA and ECDSA with SHA-512.
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(&SHA512),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
    };

    use super::*;

    fn certificate(algorithm: &'static SignatureAlgorithm) -> CertificateDer<'static> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let small = certificate(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(of(&small), Some(digest(&SHA256, &small).as_ref().to_vec()));
        let large = certificate(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(of(&large), Some(digest(&SHA384, &large).as_ref().to_vec()));
        assert_eq!(of(&certificate(&PKCS_ED25519)), None);
        assert_eq!(of(&CertificateDer::from(b"no certificate".to_vec())), None);
    }
}
