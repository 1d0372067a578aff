//! What is needed to reach the API server, with the files that it comes from. Any of them may be replaced while we run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{HeaderValue, Uri, header};
use kube::Config;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use super::kubeconfig::{Access, Login, Piece, parse_url};
use super::{proxy, tls};
use crate::adapter::file;

/// Where a pod finds what is its own.
const POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Largest of the files, bytes.
const LARGEST: u64 = 1 << 20;
/// How often they are looked at.
pub(super) const GLANCE: Duration = Duration::from_secs(1);

/// Which way to the API server the command line asks for.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) url: Option<Uri>,
    pub(super) kubeconfig: Option<PathBuf>,
}

/// All that was read. Two that are equal make equal connections.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Material {
    kubeconfig: Option<String>,
    authority: Option<Vec<u8>>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// What proves who we are in each request, ready to be sent.
    pub(super) authorization: Option<HeaderValue>,
}

/// What connections are made with.
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) tls: ClientConfig,
}

impl Way {
    /// Reads the command line.
    ///
    /// # Errors
    /// The URL is none.
    pub(super) fn new(url: Option<&str>, kubeconfig: Option<&Path>) -> Result<Self> {
        let parse = |text: &str| {
            let url = parse_url(text);
            url.with_context(|| format!("--kube-api-url {text:?} is not a URL: write https://HOST:PORT"))
        };
        Ok(Self { url: url.map(parse).transpose()?, kubeconfig: kubeconfig.map(Path::to_owned) })
    }

    /// Reads all files.
    ///
    /// # Errors
    /// One cannot be read, or contradicts itself.
    pub(super) fn read(&self) -> Result<(Access, Material)> {
        let Some(path) = &self.kubeconfig else { return self.read_without() };
        let named = || format!("--kubeconfig-file {}", path.display());
        let text = file::read(path, LARGEST).with_context(named)?;
        let mut access = Access::parse(&text, file::directory(path)).with_context(named)?;
        if let Some(url) = &self.url {
            access.server = url.clone();
        }
        let material = Material::of(&access, Some(text)).with_context(named)?;
        Ok((access, material))
    }

    fn read_without(&self) -> Result<(Access, Material)> {
        let access = match &self.url {
            // Without credentials, as flannel does.
            Some(url) => Access { server: url.clone(), ..Access::default() },
            None => {
                let why = "no way to the Kubernetes API: this is not a pod with a service account; give --kubeconfig-file";
                let pod = Path::new(POD);
                let login = Login { token_file: Some(pod.join("token")), ..Login::default() };
                let authority = Some(Piece::File(pod.join("ca.crt")));
                Access { server: in_pod().context(why)?, authority, login, ..Access::default() }
            }
        };
        let material = Material::of(&access, None)?;
        Ok((access, material))
    }
}

/// The address that kubelet tells every container.
fn in_pod() -> Result<Uri> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").context("KUBERNETES_SERVICE_HOST")?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").context("KUBERNETES_SERVICE_PORT")?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    parse_url(&format!("https://{host}:{port}")).context("KUBERNETES_SERVICE_HOST and _PORT are no address")
}

impl Material {
    fn of(access: &Access, kubeconfig: Option<String>) -> Result<Self> {
        let login = &access.login;
        let certificate = match &login.certificate {
            Some((certificate, key)) => {
                let certificate = certificate.read().context("client-certificate")?;
                Some((certificate, key.read().context("client-key")?))
            }
            None => None,
        };
        Ok(Self {
            kubeconfig,
            authority: access
                .authority
                .as_ref()
                .map(Piece::read)
                .transpose()
                .context("certificate-authority")?,
            certificate,
            authorization: authorization(login)?,
        })
    }

    /// Whether connections that were made with the other will do.
    pub(super) fn connects_as(&self, other: &Self) -> bool {
        *self == Self { authorization: self.authorization.clone(), ..other.clone() }
    }

    /// What connections are made with.
    ///
    /// # Errors
    /// A certificate or key cannot be used.
    pub(super) fn settings(&self, access: &Access) -> Result<Settings> {
        let roots = self.roots()?;
        let mut config = Config::new(access.server.clone());
        config.accept_invalid_certs = access.insecure;
        config.tls_server_name.clone_from(&access.server_name);
        config.auth_info = access.login.acting.clone();
        let [version, _] = crate::VERSION;
        let agent = HeaderValue::try_from(format!("flanneld-loden/{version}")).context("the user agent")?;
        config.headers.push((header::USER_AGENT, agent));
        let identity = self.certificate.as_ref().map(|(certificate, key)| (&**certificate, &**key));
        let tls = tls::client_config(&config, roots.as_deref(), identity)?;
        Ok(Settings { config, tls })
    }

    fn roots(&self) -> Result<Option<Vec<CertificateDer<'static>>>> {
        self.authority.as_deref().map(tls::certificates).transpose().context("certificate-authority")
    }

    /// What tells the cluster's certificate authority from others.
    pub(super) fn fingerprint(&self) -> String {
        let Ok(Some(roots)) = self.roots() else { return "the system's".to_owned() };
        let digest = roots.iter().fold(Sha256::new(), |digest, der| digest.chain_update(der)).finalize();
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Piece {
    fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Data(bytes) => Ok(bytes.clone()),
            Self::File(path) => Ok(file::read(path, LARGEST)?.into_bytes()),
        }
    }
}

fn authorization(login: &Login) -> Result<Option<HeaderValue>> {
    let from_file = login.token_file.as_ref().map(|path| {
        let token = file::read(path, LARGEST).context("tokenFile")?;
        let token = token.trim().to_owned();
        ensure!(!token.is_empty(), "tokenFile {} is empty: write the token into it", path.display());
        Ok(token)
    });
    let token = match (from_file, &login.token) {
        (Some(Ok(token)), _) => Some(token),
        // As in kubectl, the token stands in for a file that cannot be read.
        (Some(Err(_)) | None, Some(token)) => Some(token.clone()),
        (Some(Err(error)), None) => return Err(error),
        (None, None) => None,
    };
    let text = match (token, &login.basic) {
        (Some(token), _) => format!("Bearer {token}"),
        (None, Some((user, password))) => {
            let both = k8s_openapi::ByteString(format!("{user}:{password}").into_bytes());
            let both = serde_json::to_value(both).context("user and password")?;
            format!("Basic {}", both.as_str().unwrap_or_default())
        }
        (None, None) => return Ok(None),
    };
    let value = HeaderValue::try_from(text);
    let mut value = value.context("the token has characters that no token has: a line break, for example")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Says what is not done although somebody may count on it.
pub(super) fn warn(access: &Access) {
    let variable =
        ["HTTPS_PROXY", "https_proxy"].into_iter().find_map(|name| Some((name, std::env::var(name).ok()?)));
    let except =
        ["NO_PROXY", "no_proxy"].into_iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
    let host = access.server.host().unwrap_or_default();
    let by = match (&access.proxy, variable) {
        (Some(_), _) => "the kubeconfig's proxy-url",
        (None, Some((name, value))) if !value.is_empty() && !proxy::is_excepted(host, &except) => name,
        _ => return,
    };
    tracing::warn!(
        "{by} is not used: the API server at {host} is asked directly; if it cannot be reached so, see to a route"
    );
}
