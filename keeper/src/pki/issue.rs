//! Making keys, requests and certificates, and reading who a certificate names.

use super::sha256_hex;
use model::follow::Follower;
use model::state::Secrets;
use model::{ClusterId, ClusterName, Millis, NodeId, NodeName, Trouble, WallTime};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::net::IpAddr;
use std::time::Duration;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509CertificationRequest};

const TRUST_DOMAIN: &str = "spiffe://stemma/";
/// Clocks may run behind that of the signer, and be set back later. Connections are made anew in the middle of a
/// failover, which must not fail because a certificate is not valid yet by one of the clocks.
const BACKDATED: Millis = Millis::from_secs(2 * 86_400);
const CA_VALID: Millis = Millis::from_secs(10 * 365 * 86_400);
const CSR_BYTES_MAX: usize = 16 << 10;

/// Whom a certificate names, once its chain has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node's number.
    pub node: NodeId,
    /// The node's name.
    pub name: NodeName,
    /// SHA-256 of the public key, in hex.
    pub key_fingerprint: String,
    /// End of the certificate.
    pub expires_at: WallTime,
}

/// The URI that a node's certificate carries.
pub fn identity_uri(cluster: &ClusterId, node: NodeId) -> String {
    format!("{TRUST_DOMAIN}{cluster}/node/{node}")
}

/// The server name under which a mesh connection asks for a node, whatever its address.
pub fn server_name(node: NodeId) -> String {
    format!("node-{node}.stemma.internal")
}

/// Makes the cluster's CA: certificate and private key, PEM.
pub fn make_ca(cluster: &ClusterName, id: &ClusterId) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system gives random bytes");
    let now = crate::clock::wall();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let short: String = id.0.chars().take(8).collect();
    // No two CAs share a name, not even of one cluster before and after a rotation: a verifier then knows at once that
    // it does not trust the signer, and says so, instead of finding a signature that does not fit.
    let serial = random_serial();
    let unique: String = serial.to_bytes().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("stemma {cluster} {short} {unique}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, WallTime(now.0 - BACKDATED.0 as i64), WallTime(now.0 + CA_VALID.0 as i64));
    params.serial_number = Some(serial);
    let certificate = params.self_signed(&key).expect("a P-256 key signs what was just built");
    (certificate.pem(), key.serialize_pem())
}

/// Makes a node's private key and the request to sign it, PEM. The key never leaves the node.
pub fn make_key_and_csr(name: &NodeName) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system gives random bytes");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    let request = params.serialize_request(&key).expect("a P-256 key signs what was just built");
    (key.serialize_pem(), request.pem().expect("DER always fits PEM"))
}

/// A request for a new certificate of a key that the node has already, PEM.
pub fn csr_for_key(key_pem: &str, name: &NodeName) -> Result<String, Trouble> {
    let unfit = |error: rcgen::Error| {
        Trouble::certificate_refused("the node's private key cannot be used", "rotate it: stemma cert rotate")
            .because(error)
    };
    let key = KeyPair::from_pem(key_pem).map_err(unfit)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    params.serialize_request(&key).and_then(|request| request.pem()).map_err(unfit)
}

/// Signs a request: the certificate, PEM. Of the request only the public key is taken, and that its sender holds the
/// private one; who the certificate names is said by the arguments.
#[expect(clippy::too_many_arguments, reason = "each is one fact of the certificate")]
pub fn sign(
    secrets: &Secrets,
    cluster_id: &ClusterId,
    csr_pem: &str,
    node: NodeId,
    name: &NodeName,
    hosts: &[String],
    valid: Millis,
    now: WallTime,
) -> Result<String, Trouble> {
    let request = CertificateSigningRequestParams::from_der(&request_der(csr_pem)?).map_err(bad_request)?;
    let issuer = issuer(secrets)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    params.subject_alt_names = alternative_names(cluster_id, node, name, hosts)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let from = WallTime(now.0.saturating_sub(BACKDATED.0 as i64));
    set_validity(&mut params, from, WallTime(now.0.saturating_add(valid.0.min(CA_VALID.0) as i64)));
    params.serial_number = Some(random_serial());
    Ok(params.signed_by(&request.public_key, &issuer).map_err(broken_ca)?.pem())
}

/// Signs the request of a cluster that follows this one. The certificate names no node: servers know it by its common
/// name, and keepers let nobody in with it.
pub fn sign_follower(
    secrets: &Secrets,
    cluster_id: &ClusterId,
    csr_pem: &str,
    follower: &Follower,
    valid: Millis,
    now: WallTime,
) -> Result<String, Trouble> {
    let request = CertificateSigningRequestParams::from_der(&request_der(csr_pem)?).map_err(bad_request)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, follower.common_name());
    let uri = format!("{TRUST_DOMAIN}{cluster_id}/follower/{}", follower.id);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(broken_ca::<rcgen::Error>)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let from = WallTime(now.0.saturating_sub(BACKDATED.0 as i64));
    set_validity(&mut params, from, WallTime(now.0.saturating_add(valid.0.min(CA_VALID.0) as i64)));
    params.serial_number = Some(random_serial());
    Ok(params.signed_by(&request.public_key, &issuer(secrets)?).map_err(broken_ca)?.pem())
}

fn issuer(secrets: &Secrets) -> Result<Issuer<'static, KeyPair>, Trouble> {
    let ca_pem = secrets.ca_certificates.first().ok_or_else(|| broken_ca("the cluster's secrets hold no CA"))?;
    let ca_key = KeyPair::from_pem(&secrets.ca_key).map_err(broken_ca)?;
    Issuer::from_ca_cert_pem(ca_pem, ca_key).map_err(broken_ca)
}

fn alternative_names(
    cluster: &ClusterId,
    node: NodeId,
    name: &NodeName,
    hosts: &[String],
) -> Result<Vec<SanType>, Trouble> {
    let plain = |text: &str, more: &[u8]| {
        (1..=253).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    if !plain(&cluster.0, b"-") {
        return Err(Trouble::config_bad_value(
            format!("`{cluster}` cannot be the id of a cluster"),
            "ids are letters, digits and hyphens",
        ));
    }
    let text = |text: String| text.try_into().map_err(broken_ca::<rcgen::Error>);
    let mut names = vec![
        SanType::URI(text(identity_uri(cluster, node))?),
        SanType::DnsName(text(server_name(node))?),
        SanType::DnsName(text(name.as_str().to_owned())?),
    ];
    for host in hosts {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let san = if let Ok(address) = bare.parse::<IpAddr>() {
            SanType::IpAddress(address)
        } else if plain(host, b".-_") {
            SanType::DnsName(text(host.clone())?)
        } else {
            return Err(Trouble::config_bad_value(
                format!("`{}` is neither a host name nor an address", host.escape_debug()),
                "give the host under which other nodes reach this one",
            ));
        };
        if !names.contains(&san) {
            names.push(san);
        }
    }
    Ok(names)
}

/// Fingerprint of the public key in a request, whose signature is verified.
pub fn key_fingerprint_of_csr(csr_pem: &str) -> Result<String, Trouble> {
    let der = request_der(csr_pem)?;
    CertificateSigningRequestParams::from_der(&der).map_err(bad_request)?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(bad_request)?;
    Ok(sha256_hex(request.certification_request_info.subject_pki.raw))
}

/// Fingerprint of the public key in a certificate (DER).
pub fn key_fingerprint_of_cert(der: &[u8]) -> Result<String, Trouble> {
    Ok(sha256_hex(parse(der)?.public_key().raw))
}

/// SHA-256 of a CA certificate (PEM), as join tokens carry it.
pub fn ca_sha256(ca_pem: &str) -> Result<String, Trouble> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|error| broken_ca(format!("the CA certificate is not PEM: {error:?}")))?;
    Ok(sha256_hex(&der))
}

/// Whom a certificate (DER) names. Says nothing about who signed it: verify the chain first.
pub fn client_identity_from_cert(der: &[u8]) -> Result<PeerIdentity, Trouble> {
    let certificate = parse(der)?;
    let names = certificate.subject_alternative_name().map_err(refused)?;
    let mut uris = names.iter().flat_map(|san| &san.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(refused("it does not carry exactly one URI that names a node"));
    };
    let (cluster, node) = read_uri(uri).ok_or_else(|| refused(format!("its URI `{uri}` names no node of ours")))?;
    let mut common = certificate.subject().iter_common_name();
    let name = common.next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    Ok(PeerIdentity {
        cluster,
        node,
        name: name.parse().map_err(refused)?,
        key_fingerprint: sha256_hex(certificate.public_key().raw),
        expires_at: WallTime(certificate.validity().not_after.timestamp().saturating_mul(1000)),
    })
}

fn read_uri(uri: &str) -> Option<(ClusterId, NodeId)> {
    let (cluster, node) = uri.strip_prefix(TRUST_DOMAIN)?.split_once("/node/")?;
    let id: u64 = node.parse().ok()?;
    // Only the one spelling that we write: `+1` or `01` would be a second name for the same node.
    (!cluster.is_empty() && !cluster.contains('/') && id.to_string() == node)
        .then(|| (ClusterId(cluster.to_owned()), NodeId(id)))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Trouble> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(refused("bytes follow after its end")),
        Err(error) => Err(refused(error)),
    }
}

fn request_der(csr_pem: &str) -> Result<CertificateSigningRequestDer<'static>, Trouble> {
    if csr_pem.len() > CSR_BYTES_MAX {
        return Err(bad_request(format!("{} bytes are too many", csr_pem.len())));
    }
    CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).map_err(|error| bad_request(format!("{error:?}")))
}

fn bad_request<E: std::fmt::Display>(cause: E) -> Trouble {
    Trouble::bad_request(
        "the certificate request cannot be used",
        "let the node join again with this version of stemma",
    )
    .because(cause)
}

fn broken_ca<E: std::fmt::Display>(cause: E) -> Trouble {
    Trouble::certificate_refused(
        "the cluster's CA cannot sign",
        "restore the cluster's secrets from a member that has them",
    )
    .because(cause)
}

fn refused<E: std::fmt::Display>(cause: E) -> Trouble {
    Trouble::certificate_refused(
        "the certificate is not that of a node",
        "join the node anew with a token of this cluster",
    )
    .because(cause)
}

/// Writes the dates of a certificate, both or none. Years beyond 2400 are cut: DER has no room for the far future.
fn set_validity(params: &mut CertificateParams, from: WallTime, until: WallTime) {
    const LATEST_S: i64 = 430 * 365 * 86_400;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = |time: WallTime| Duration::from_secs((time.0 / 1000).clamp(0, LATEST_S) as u64);
    params.not_before = epoch + seconds(from);
    params.not_after = epoch + seconds(until);
}

/// Serial numbers must differ even when the same key is signed again.
fn random_serial() -> SerialNumber {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
    bytes[0] = bytes[0] & 0x7F | 0x40;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(id: &ClusterId) -> Secrets {
        let (certificate, key) = make_ca(&"shop".parse().expect("valid"), id);
        Secrets {
            ca_certificates: vec![certificate],
            ca_key: key,
            superuser_password: String::new(),
            replication_password: String::new(),
            postgres_password: String::new(),
            name_salt: String::new(),
            upstream: None,
        }
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
    }

    #[test]
    fn a_signed_certificate_names_the_node_and_holds_the_key_of_the_request() {
        let id = ClusterId("c-1".into());
        let name: NodeName = "n2".parse().expect("valid");
        let (_, csr) = make_key_and_csr(&name);
        let now = crate::clock::wall();
        let hosts = ["db2.example".to_owned(), "10.0.0.2".to_owned(), "[::1]".to_owned()];
        let pem = sign(&secrets(&id), &id, &csr, NodeId(2), &name, &hosts, Millis::from_secs(3600), now);
        let der = der(&pem.expect("signed"));
        let identity = client_identity_from_cert(&der).expect("names a node");
        assert_eq!((&identity.cluster, identity.node, &identity.name), (&id, NodeId(2), &name));
        assert_eq!(identity.key_fingerprint, key_fingerprint_of_csr(&csr).expect("valid"));
        assert_eq!(identity.key_fingerprint, key_fingerprint_of_cert(&der).expect("valid"));
        assert_eq!(identity.expires_at.0, (now.0 + 3_600_000) / 1000 * 1000);
        let text = format!("{:?}", parse(&der).expect("valid").subject_alternative_name());
        for part in ["spiffe://stemma/c-1/node/2", "node-2.stemma.internal", "\"n2\"", "db2.example", "[10, 0, 0, 2]"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_request_that_was_tampered_with_is_refused() {
        let (_, csr) = make_key_and_csr(&"n2".parse().expect("valid"));
        let id = ClusterId("c".into());
        let mut other = request_der(&csr).expect("valid").to_vec();
        let last = other.len() - 1;
        other[last] ^= 1;
        let engine = base64::engine::general_purpose::STANDARD;
        let text = base64::Engine::encode(&engine, &other);
        let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(key_fingerprint_of_csr(&forged).expect_err("forged").is("ST1301"));
        for bad in [forged.as_str(), "", "hello", &"x".repeat(1 << 20)] {
            let name = "n2".parse().expect("valid");
            let signed = sign(&secrets(&id), &id, bad, NodeId(2), &name, &[], Millis(1), WallTime(0));
            assert!(signed.expect_err("refused").is("ST1301"));
        }
    }

    #[test]
    fn hosts_and_ids_that_could_smuggle_names_are_refused() {
        let name: NodeName = "n2".parse().expect("valid");
        let (_, csr) = make_key_and_csr(&name);
        let good = ClusterId("c".into());
        let sign = |id: &ClusterId, host: &str| {
            sign(&secrets(&good), id, &csr, NodeId(2), &name, &[host.to_owned()], Millis(1), WallTime(0))
        };
        for host in ["", "a b", "a,b", "*.example", "a\0b", "a/b"] {
            assert!(sign(&good, host).expect_err("refused").is("ST1103"), "{host:?}");
        }
        assert!(sign(&ClusterId("c/node/1".into()), "a").expect_err("refused").is("ST1103"));
    }

    #[test]
    fn only_the_one_spelling_of_a_uri_is_read() {
        let read = |uri: &str| read_uri(uri).map(|(cluster, node)| (cluster.0, node.0));
        assert_eq!(read("spiffe://stemma/c/node/7"), Some(("c".into(), 7)));
        let bad = ["spiffe://stemma//node/7", "spiffe://stemma/c/node/07", "spiffe://stemma/c/node/+7"];
        for bad in bad.into_iter().chain(["spiffe://other/c/node/7", "spiffe://stemma/c/d/node/7", "spiffe://stemma/c"])
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
