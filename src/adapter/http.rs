//! The admin endpoint: read-only HTTP for probes and Prometheus.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::tasks;

/// Clients that hold a connection open without a request are cut off after this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer: status, content type, body.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Body.
    pub body: String,
}

impl Answer {
    /// Plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// Binds the endpoint, so that a port in use is an error at start and not a line in the log.
pub async fn bind(at: SocketAddr) -> Result<TcpListener> {
    match TcpListener::bind(at).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "health endpoint {at} is in use (`ss -ltnp 'sport = :{}'` names the program): stop it, or set --healthz-port",
            at.port()
        ),
        Err(error) => Err(error)
            .with_context(|| format!("cannot listen on {at}: check --healthz-ip and --healthz-port")),
    }
}

/// Serves until the task is dropped; `answer` gets the path of each GET.
pub async fn serve<F>(listener: TcpListener, answer: F) -> Infallible
where
    F: Fn(&str) -> Option<Answer> + 'static,
{
    let answer = Rc::new(answer);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the next connection may find one free.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = answer.clone();
        tasks::spawn_short("health-connection", async move {
            let service =
                service_fn(|request| std::future::ready(Ok::<_, Infallible>(respond(&request, &*answer))));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // A client that goes away in the middle is its own business.
            let _ = connection.await;
        });
    }
}

fn respond<B>(request: &Request<B>, answer: &dyn Fn(&str) -> Option<Answer>) -> Response<Full<Bytes>> {
    let answer = if request.method() == Method::GET || request.method() == Method::HEAD {
        answer(request.uri().path())
            .unwrap_or_else(|| Answer::text(404, "try /healthz, /readyz or /metrics\n"))
    } else {
        Answer::text(405, "this endpoint is read-only\n")
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(answer.content_type));
    response
}
