//! The way to the API server: one client, every request with a time limit.

use std::cell::RefCell;
use std::fmt::Display;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderValue, header};
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::core::v1::Event;
use kube::Client;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::client::Body;
use kube::core::Request;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::events;
use super::publish::StatusPatch;
use super::server::Server;
use super::trouble::{Cause, Trouble};
use super::wire::{self, Events};
use crate::config::PodIdentity;
use crate::lease::FromProtobuf;

const NODES: &str = "/api/v1/nodes";

/// All objects of a kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Collection {
    path: &'static str,
    /// Those that the server leaves out are not even sent.
    fields: Option<&'static str>,
}

impl Collection {
    pub(super) const NODES: Self = Self { path: NODES, fields: None };
    /// Pods that have finished have no address any more.
    pub(super) const PODS: Self =
        Self { path: "/api/v1/pods", fields: Some("status.phase!=Succeeded,status.phase!=Failed") };
}

/// Objects per page: of Nodes, about 5 MB of JSON.
const PAGE: u32 = 500;

/// Until a server that accepted the connection has answered.
const REQUEST: Duration = Duration::from_secs(10);
/// Until a page has arrived whole.
const WHOLE_PAGE: Duration = Duration::from_secs(30);
/// Largest page, bytes.
const LARGEST_PAGE: usize = 256 << 20;
/// Longest explanation of a failure, bytes.
const LARGEST_FAILURE: usize = 1 << 20;

/// A part of the list of all objects of a kind.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) metadata: PageMeta,
    pub(super) items: Vec<T>,
}

/// Where a page stands.
#[derive(Debug, Default)]
pub(super) struct PageMeta {
    pub(super) resource_version: String,
    pub(super) next: Option<String>,
}

/// The API server, and connections to it that clones share.
#[derive(Clone)]
pub struct Api {
    server: Arc<Server>,
    /// The connections, and how often this machine had moved when they were made.
    client: RefCell<(u64, Client)>,
}

impl Api {
    /// Prepares the way; the first request connects. With neither argument it is the cluster that this pod runs in;
    /// `url` replaces the server that a kubeconfig names, and alone it is asked without credentials, as flannel does.
    ///
    /// # Errors
    /// The kubeconfig cannot be read, or asks for something that we do not do.
    pub async fn new(url: Option<&str>, kubeconfig: Option<&Path>) -> Result<Self> {
        Self::to(Arc::new(Server::find(url, kubeconfig).await?))
    }

    fn to(server: Arc<Server>) -> Result<Self> {
        let client = (server.moves(), server.connections()?);
        Ok(Self { client: RefCell::new(client), server })
    }

    /// The same server, over connections that belong to the runtime that this is called in.
    pub(super) fn apart(&self) -> Result<Self> {
        Self::to(Arc::clone(&self.server))
    }

    /// Gives up all connections, of other threads too: answers to an address that this machine had do not come any more.
    pub fn reconnect(&self) {
        self.server.moved();
    }

    /// Follows the files that say how to reach the server and who we are, for good; `report` hears what cannot be used.
    pub async fn follow_files(&self, report: impl Fn(Option<String>)) {
        self.server.follow(report).await;
    }

    /// Waits until the connections that were last used are given up.
    pub(super) async fn given_up(&self) {
        let made = self.client.borrow().0;
        self.server.moved_since(made).await;
    }

    fn client(&self) -> Client {
        let mut client = self.client.borrow_mut();
        let moves = self.server.moves();
        if client.0 != moves {
            client.0 = moves;
            match self.server.connections() {
                Ok(fresh) => client.1 = fresh,
                Err(error) => {
                    tracing::warn!("connections to the Kubernetes API stay as they are: {error:#}");
                }
            }
        }
        client.1.clone()
    }

    /// The server's address, for people.
    pub fn url(&self) -> &str {
        self.server.url()
    }

    /// What tells the cluster's certificate authority from others.
    pub fn authority(&self) -> &str {
        self.server.authority()
    }

    /// `trouble` as one line that names the server.
    pub fn describe(&self, trouble: &impl Display) -> String {
        format!("Kubernetes API at {}: {trouble}", self.url())
    }

    /// The node that a pod runs on.
    ///
    /// # Errors
    /// The pod cannot be read, or is bound to no node.
    pub async fn node_of(&self, pod: &PodIdentity) -> Result<String> {
        #[derive(Deserialize)]
        struct Pod {
            spec: Spec,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Spec {
            node_name: Option<String>,
        }
        ensure!(
            is_path_segment(&pod.name) && is_path_segment(&pod.namespace),
            "POD_NAME {:?} and POD_NAMESPACE {:?} are not the names of a pod and its namespace: take both from fieldRef, \
             or set NODE_NAME",
            pod.name,
            pod.namespace
        );
        let path = format!("/api/v1/namespaces/{}/pods", pod.namespace);
        let request = Request::new(path).get(&pod.name, &kube::api::GetParams::default());
        let read = self.json::<Pod>(REQUEST, request).await;
        let pod = read.map_err(|trouble| {
            anyhow::anyhow!(
                "NODE_NAME is not set, and the pod {}/{} that we run in cannot be read: {}. Set NODE_NAME \
                 (valueFrom fieldRef spec.nodeName)",
                pod.namespace,
                pod.name,
                self.describe(&trouble)
            )
        })?;
        pod.spec
            .node_name
            .filter(|name| !name.is_empty())
            .context("the pod that we run in is bound to no node")
    }

    /// Reads a page of the list of all objects of a collection, as they are now.
    pub(super) async fn page<T: FromProtobuf>(
        &self,
        of: Collection,
        next: Option<String>,
    ) -> Result<Page<T>, Trouble> {
        let params = ListParams { limit: Some(PAGE), continue_token: next, ..ListParams::default() };
        wire::page(&self.list(of, params).await?)
    }

    /// The version that a collection has now.
    pub(super) async fn version(&self, of: Collection) -> Result<String, Trouble> {
        let params = ListParams { limit: Some(1), ..ListParams::default() };
        wire::version(&self.list(of, params).await?)
    }

    async fn list(&self, of: Collection, mut params: ListParams) -> Result<Bytes, Trouble> {
        params.field_selector = of.fields.map(str::to_owned);
        let request = built(Request::new(of.path).list(&params))?;
        let read = async { whole(self.protobuf(request, wire::ACCEPT).await?, LARGEST_PAGE).await };
        in_time(WHOLE_PAGE, read).await
    }

    /// Watches a collection for `limit` from `version` on. With `initial` the watch begins with everything that there is.
    pub(super) async fn watch(
        &self,
        of: Collection,
        version: &str,
        initial: bool,
        limit: Duration,
    ) -> Result<Events, Trouble> {
        let params = WatchParams {
            bookmarks: true,
            send_initial_events: initial,
            timeout: u32::try_from(limit.as_secs()).ok(),
            field_selector: of.fields.map(str::to_owned),
            ..WatchParams::default()
        };
        let request = built(Request::new(of.path).watch(&params, version))?;
        Ok(Events::new(in_time(REQUEST, self.protobuf(request, wire::ACCEPT_WATCH)).await?))
    }

    /// Asks for protobuf; the answer's body has not come yet.
    async fn protobuf(&self, request: http::Request<Vec<u8>>, accept: &'static str) -> Result<Body, Trouble> {
        let mut request = request.map(Body::from);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(accept));
        let answer = self.client().send(request).await.map_err(|error| Trouble::of(&error))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(wire::failure(status.as_u16(), &whole(answer.into_body(), LARGEST_FAILURE).await?));
        }
        let kind = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default();
        if !kind.starts_with(wire::ACCEPT) {
            return Err(Trouble::new(Cause::BadAnswer, &format!("its answer is {kind:?} and no protobuf")));
        }
        Ok(answer.into_body())
    }

    /// Changes a Node's annotations and status: the only write that our role allows.
    pub(super) async fn patch_status(&self, node: &str, patch: &StatusPatch) -> Result<(), Trouble> {
        let params = PatchParams::default();
        let request =
            built(Request::new(NODES).patch_subresource("status", node, &params, &Patch::Strategic(patch)))?;
        within(REQUEST, self.client().request_text(request)).await.map(drop)
    }

    /// Writes an Event. `false` when there is one of its name already.
    pub(super) async fn create_event(&self, event: &Event) -> Result<bool, Trouble> {
        let path = format!("/api/v1/namespaces/{}/events", events::NAMESPACE);
        let request =
            built(Request::new(path).create(&PostParams::default(), built(serde_json::to_vec(event))?))?;
        let create = async {
            match self.client().request_text(request).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
                answer => answer.map(|_| true),
            }
        };
        within(REQUEST, create).await
    }

    /// Decodes here rather than in the client, which would log a body that it cannot decode as a whole.
    async fn json<T: DeserializeOwned>(
        &self,
        limit: Duration,
        request: Result<http::Request<Vec<u8>>, impl Display>,
    ) -> Result<T, Trouble> {
        let text = within(limit, self.client().request_text(built(request)?)).await?;
        serde_json::from_str(&text).map_err(|error| Trouble::new(Cause::BadAnswer, &error.to_string()))
    }
}

fn built<T>(request: Result<T, impl Display>) -> Result<T, Trouble> {
    request.map_err(|error| Trouble::new(Cause::Other, &error.to_string()))
}

/// TCP does not notice a server that hangs: it goes on acknowledging.
async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let late = |_| Err(Trouble::new(Cause::Timeout, &format!("{} s", limit.as_secs())));
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

async fn within<T>(limit: Duration, request: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
    in_time(limit, async { request.await.map_err(|error| Trouble::of(&error)) }).await
}

/// Waits for the rest of a body.
async fn whole(body: Body, largest: usize) -> Result<Bytes, Trouble> {
    match Limited::new(body, largest).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) => Err(match error.downcast::<kube::Error>() {
            Ok(error) => Trouble::of(&error),
            Err(error) => Trouble::new(Cause::BadAnswer, &error.to_string()),
        }),
    }
}

/// The client library puts names into the path as they are.
fn is_path_segment(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !name.is_empty()
        && name != ".."
}
