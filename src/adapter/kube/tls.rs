//! The TLS of connections to the API server, and what is taken for a certificate of its own.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kube::Config;
use kube::client::ConfigExt as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

/// What a client certificate has to be.
const CLIENT_KEY: &str = "its key has to be ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more; \
                          make one, for example with `openssl ecparam -name prime256v1 -genkey`";

/// Certificates of a PEM text.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.context("it is not PEM")?;
    ensure!(!found.is_empty(), "there is no certificate in it");
    Ok(found)
}

/// The settings for connections: `roots` sign for the server (without any, the system's do), `identity` is our own
/// certificate and its key in PEM.
pub(super) fn client_config(
    config: &Config,
    roots: Option<&[CertificateDer<'static>]>,
    identity: Option<(&[u8], &[u8])>,
) -> Result<ClientConfig> {
    let mut tls = match roots {
        Some(roots) => {
            let verifier = Arc::new(Verifier::new(roots)?);
            ClientConfig::builder()
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        }
        None => {
            config.rustls_client_config().context("the system's certificate authorities cannot be used")?
        }
    };
    if let Some((certificate, key)) = identity {
        let chain = certificates(certificate).context("the client certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key).context("the client key")?;
        let both = CertifiedKey::from_der(chain, key, tls.crypto_provider());
        let both =
            both.with_context(|| format!("client certificate and key cannot be used: {CLIENT_KEY}"))?;
        tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(both));
    }
    Ok(tls)
}

/// Checks the server's certificate as rustls does, but for one thing that kubectl takes: the server's certificate may be
/// the very authority that it is checked by, as `openssl req -x509` makes it.
#[derive(Debug)]
struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    roots: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(roots: &[CertificateDer<'static>]) -> Result<Self> {
        let mut store = RootCertStore::empty();
        // As in kubectl, one that cannot be read does not spoil the others.
        let (taken, _) = store.add_parsable_certificates(roots.iter().cloned());
        ensure!(taken > 0, "no certificate of the authority can be read");
        let usual =
            WebPkiServerVerifier::builder(Arc::new(store)).build().context("the authority cannot be used")?;
        Ok(Self { usual, roots: roots.to_vec() })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verdict =
            self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // Its time is checked before this is found, its signature is its own, and the handshake proves its key: of
            // what counts for one that is trusted by name, only the server's name is left to be looked at.
            Err(error) if is_authority(&error) && self.roots.iter().any(|root| root == end_entity) => {
                let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Whether the server shows a certificate authority's certificate as its own.
pub(super) fn is_authority(error: &TlsError) -> bool {
    match error {
        // rustls has no name of its own for it.
        TlsError::InvalidCertificate(CertificateError::Other(other)) => {
            other.to_string().contains("CaUsedAsEndEntity")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;

    const NAME: &str = "api.example";

    /// What `openssl req -x509` makes: a certificate that signs itself and says that it is an authority.
    fn own_authority(change: impl FnOnce(&mut CertificateParams)) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![NAME.into()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(key.serialize_der()).unwrap()
    }

    /// Shakes hands with a server in memory.
    fn shake(
        root: &CertificateDer<'static>,
        shown: &CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        name: &'static str,
    ) -> Result<(), TlsError> {
        let config = Config::new("https://api.example".parse().unwrap());
        let client = client_config(&config, Some(std::slice::from_ref(root)), None).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name.try_into().unwrap())?;
        let server =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![shown.clone()], key)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut &*wire).unwrap();
            server.process_new_packets()?;
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut &*wire).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn a_server_that_is_its_own_authority_is_taken_if_it_is_ours() {
        let (ours, other) = (own_authority(|_| {}), own_authority(|_| {}));
        let show = |of: &CertifiedIssuer<'static, KeyPair>, name| {
            shake(ours.as_ref().der(), of.as_ref().der(), private(of.key()), name)
        };
        assert_eq!(show(&ours, NAME), Ok(()));
        assert!(show(&ours, "another.example").is_err(), "another name");
        assert!(show(&other, NAME).is_err(), "another authority, of the same name");
        // Who has the certificate has not got its key.
        assert!(shake(ours.as_ref().der(), ours.as_ref().der(), private(other.key()), NAME).is_err());
        let over = own_authority(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        assert!(
            shake(over.as_ref().der(), over.as_ref().der(), private(over.key()), NAME).is_err(),
            "out of date"
        );
    }

    #[test]
    fn a_server_that_the_authority_signed_is_taken() {
        let authority = own_authority(|_| {});
        let key = KeyPair::generate().unwrap();
        let signed = CertificateParams::new(vec![NAME.into()]).unwrap().signed_by(&key, &authority).unwrap();
        let shake = |root: &CertificateDer<'static>| shake(root, signed.der(), private(&key), NAME);
        assert_eq!(shake(authority.as_ref().der()), Ok(()));
        assert!(shake(own_authority(|_| {}).as_ref().der()).is_err());
    }
}
