//! A certificate authority for one server, and what it signs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// A certificate and its key, in PEM.
pub(super) struct Identity {
    pub(super) cert: String,
    pub(super) key: String,
}

/// An authority whose key never leaves this process.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self> {
        let mut params = named(Vec::new(), name)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server certificate for `sans` (names and addresses).
    pub(super) fn server(&self, sans: Vec<String>) -> Result<Identity> {
        self.sign(named(sans, "kube-apiserver")?, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client certificate: Kubernetes takes the common name for the user and each organisation for a group.
    pub(super) fn client(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = named(Vec::new(), user)?;
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Result<Identity> {
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.0)?;
        Ok(Identity { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn named(sans: Vec<String>, common_name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(sans)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// What kube-apiserver reads from disk.
pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) server_cert: PathBuf,
    pub(super) server_key: PathBuf,
    /// Signs the tokens of ServiceAccounts.
    pub(super) token_key: PathBuf,
    /// Verifies them.
    pub(super) token_public_key: PathBuf,
    /// How it asks kubelets for logs and for a process in a container.
    pub(super) kubelet_client_cert: PathBuf,
    pub(super) kubelet_client_key: PathBuf,
}

impl Files {
    pub(super) fn write(dir: &Path, ca: &Authority, sans: Vec<String>) -> Result<Self> {
        let server = ca.server(sans)?;
        let token_key = KeyPair::generate()?;
        let to_kubelets = ca.client("kube-apiserver", Some("system:masters"))?;
        let put = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Self {
            ca: put("ca.crt", ca.pem())?,
            server_cert: put("server.crt", server.cert)?,
            server_key: put("server.key", server.key)?,
            token_key: put("token.key", token_key.serialize_pem())?,
            token_public_key: put("token.pub", token_key.public_key_pem())?,
            kubelet_client_cert: put("kubelet-client.crt", to_kubelets.cert)?,
            kubelet_client_key: put("kubelet-client.key", to_kubelets.key)?,
        })
    }
}
