//! Where the API server is, whom it has to prove to be, and how its connections are made.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{HeaderValue, Uri, header};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tower::{BoxError, Service, ServiceBuilder};

use super::trouble::Overloaded;

/// The system's resolver gives a name server that is silent 5 s before it asks the next one.
const RESOLVE: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(5);

/// A peer that vanished without a word is noticed after 25 s by keep-alive, or 20 s when something was sent to it.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// The API server of a cluster. Threads share it; each has connections of its own.
pub(super) struct Server {
    config: Config,
    url: String,
    authority: String,
    /// How often this machine has moved: connections that were made before a move are of no use any more.
    moves: watch::Sender<u64>,
}

impl Server {
    /// With neither argument it is that of the cluster that this pod runs in; `url` replaces the server that a kubeconfig
    /// names, and alone it is asked without credentials, as flannel does.
    ///
    /// # Errors
    /// The kubeconfig cannot be read, or asks for something that we do not do.
    pub(super) async fn find(url: Option<&str>, kubeconfig: Option<&Path>) -> Result<Self> {
        let url = url.map(parse_url).transpose()?;
        let mut config = match (kubeconfig, &url) {
            (Some(path), _) => from_file(path).await.with_context(|| format!("--kubeconfig-file {}", path.display()))?,
            (None, Some(url)) => Config::new(url.clone()),
            (None, None) => Config::incluster().context(
                "no way to the Kubernetes API: this is not a pod with a service account; give --kubeconfig-file",
            )?,
        };
        if let Some(url) = url {
            config.cluster_url = url;
        }
        if config.proxy_url.take().is_some() {
            tracing::warn!(
                "the API server is asked directly: proxies (proxy-url, HTTPS_PROXY) are not supported"
            );
        }
        let [version, _] = crate::VERSION;
        let agent = HeaderValue::try_from(format!("flanneld-loden/{version}")).context("the user agent")?;
        config.headers.push((header::USER_AGENT, agent));
        Ok(Self {
            url: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            authority: fingerprint(config.root_cert.as_deref()),
            config,
            moves: watch::Sender::new(0),
        })
    }

    /// Its address, for people.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What tells the cluster's certificate authority from others.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Answers to an address that this machine had do not come any more.
    pub(super) fn moved(&self) {
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// How often this machine has moved.
    pub(super) fn moves(&self) -> u64 {
        *self.moves.borrow()
    }

    /// Waits until it has moved more often than that.
    pub(super) async fn moved_since(&self, moves: u64) {
        // The sender lives as long as we do.
        let _ = self.moves.subscribe().wait_for(|now| *now != moves).await;
    }

    /// A client without connections yet; they belong to the runtime that this is called in.
    pub(super) fn connections(&self) -> Result<Client> {
        let config = &self.config;
        let mut tcp = HttpConnector::new_with_resolver(tower::service_fn(resolve));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let tls = config
            .rustls_https_connector_with_connector(tcp)
            .context("the certificates for the Kubernetes API cannot be used")?;
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(tls);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(
                config.auth_layer().context("the credentials for the Kubernetes API cannot be used")?,
            )
            .layer(config.extra_headers_layer().context("the headers for the Kubernetes API cannot be used")?)
            .map_result(|answer: Result<_, _>| rest_asked_for(answer.map_err(BoxError::from)?))
            .service(http);
        Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
    }
}

fn fingerprint(certificates: Option<&[Vec<u8>]>) -> String {
    let Some(certificates) = certificates else { return "the system's".to_owned() };
    let digest = certificates.iter().fold(Sha256::new(), |digest, der| digest.chain_update(der)).finalize();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The client library keeps an error's body and drops its headers, but only a header says how long to wait.
fn rest_asked_for<B>(answer: http::Response<B>) -> Result<http::Response<B>, BoxError> {
    let header = answer.headers().get(header::RETRY_AFTER).filter(|_| answer.status() == 429);
    match header.and_then(|value| value.to_str().ok()?.parse().ok()) {
        Some(seconds) => Err(Overloaded { retry_after: Duration::from_secs(seconds) }.into()),
        None => Ok(answer),
    }
}

/// Without a limit of its own, a resolver that hangs would look like a server that does.
async fn resolve(name: Name) -> io::Result<<GaiResolver as Service<Name>>::Response> {
    match tokio::time::timeout(RESOLVE, GaiResolver::new().call(name)).await {
        Ok(found) => found,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the name servers do not answer")),
    }
}

fn parse_url(text: &str) -> Result<Uri> {
    let url: Uri = text
        .parse()
        .ok()
        .filter(|url: &Uri| url.host().is_some() && url.scheme().is_some())
        .with_context(|| format!("--kube-api-url {text:?} is not a URL: write https://HOST:PORT"))?;
    Ok(url)
}

async fn from_file(path: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        bail!(
            "its user logs in by running a program (exec, auth-provider), and this daemon runs none: give that user a \
             token, a tokenFile or a client certificate"
        );
    }
    Ok(config)
}
