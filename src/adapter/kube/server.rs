//! Where the API server is, whom it has to prove to be, and how its connections are made.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use http::{HeaderValue, header};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use tokio::sync::watch;
use tower::{BoxError, Service, ServiceBuilder};

use super::credentials::{self, GLANCE, Material, Settings, Way};
use super::trouble::Overloaded;

/// The system's resolver gives a name server that is silent 5 s before it asks the next one.
const RESOLVE: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(5);
/// A file that does not answer within this time hangs.
const READ: Duration = Duration::from_secs(5);

/// A peer that vanished without a word is noticed after 25 s by keep-alive, or 20 s when something was sent to it.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// The API server of a cluster. Threads share it; each has connections of its own.
pub(super) struct Server {
    way: Way,
    url: String,
    authority: String,
    current: RwLock<Current>,
    /// How often connections that were made before became useless: this machine has moved, or proves otherwise who it is.
    moves: watch::Sender<u64>,
}

/// What was read last and can be used.
#[derive(Clone)]
struct Current {
    material: Material,
    settings: Arc<Settings>,
}

impl Server {
    /// With neither argument it is that of the cluster that this pod runs in; `url` replaces the server that a kubeconfig
    /// names, and alone it is asked without credentials, as flannel does.
    ///
    /// # Errors
    /// The kubeconfig cannot be read, or asks for something that we do not do.
    pub(super) async fn find(url: Option<&str>, kubeconfig: Option<&Path>) -> Result<Self> {
        let way = Way::new(url, kubeconfig)?;
        let reading = way.clone();
        let (access, material) = patiently(move || reading.read()).await?;
        let named =
            || kubeconfig.map_or_else(String::new, |path| format!("--kubeconfig-file {}", path.display()));
        let settings = Arc::new(material.settings(&access).with_context(named)?);
        credentials::warn(&access);
        Ok(Self {
            way,
            url: access.server.to_string().trim_end_matches('/').to_owned(),
            authority: material.fingerprint(),
            current: RwLock::new(Current { material, settings }),
            moves: watch::Sender::new(0),
        })
    }

    /// Reads all files again and again, and uses what is new. What cannot be used is told to `report`, and changes nothing.
    pub(super) async fn follow(&self, report: impl Fn(Option<String>)) {
        loop {
            tokio::time::sleep(GLANCE).await;
            let way = self.way.clone();
            let read = patiently(move || way.read()).await;
            let renewed = read.and_then(|(access, material)| {
                let now = self.current();
                if material == now.material {
                    return Ok(());
                }
                let same = material.connects_as(&now.material);
                let settings = if same { now.settings } else { Arc::new(material.settings(&access)?) };
                *self.current.write().unwrap_or_else(PoisonError::into_inner) =
                    Current { material, settings };
                if !same {
                    tracing::info!("the way to the Kubernetes API is another: connections are made anew");
                    self.moved();
                }
                Ok(())
            });
            report(renewed.err().map(|error| {
                format!("the way to the Kubernetes API cannot be read anew, what was read before is used: {error:#}")
            }));
        }
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
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
    pub(super) fn connections(self: &Arc<Self>) -> Result<Client> {
        let Settings { config, tls } = &*self.current().settings;
        let mut tcp = HttpConnector::new_with_resolver(tower::service_fn(resolve));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let mut https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
        if let Some(name) = &config.tls_server_name {
            let name =
                name.clone().try_into().with_context(|| format!("tls-server-name {name:?} is no name"))?;
            https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        let https = https.enable_http1().wrap_connector(tcp);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https);
        let server = Arc::clone(self);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .map_request(move |request| server.authorized(request))
            .layer(config.extra_headers_layer().context("the headers for the Kubernetes API cannot be used")?)
            .map_result(|answer: Result<_, _>| rest_asked_for(answer.map_err(BoxError::from)?))
            .service(http);
        Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
    }

    /// Adds what proves who we are, as it was read last.
    fn authorized(&self, mut request: http::Request<Body>) -> http::Request<Body> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &current.material.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::clone(value));
        }
        request
    }
}

/// Reads files on a thread of its own: one may hang.
async fn patiently<T: Send + 'static>(read: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let read = tokio::time::timeout(READ, tokio::task::spawn_blocking(read)).await;
    let late =
        || format!("a file of the way to the Kubernetes API does not answer within {} s", READ.as_secs());
    read.with_context(late)?.context("the thread that reads it ended")?
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
