//! The admin endpoint: read-only HTTP for probes and Prometheus, which every pod can reach.
//!
//! So nobody who speaks with it may cost the control thread anything: connections are served on a thread of their own, one
//! request each, a bounded number, with a limit on their time; and however many ask for the same page, the control thread
//! writes it at most fifty times a second.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::clients::{Clients, on_own_thread};
use super::descriptors;
use super::tasks::Tasks;

/// Connections that may wait to be accepted. The kernel takes net.core.somaxconn if that is less; a connection beyond it is
/// tried again by the client's kernel after a second.
const BACKLOG: u32 = 4096;

/// Connections at a time.
const CONNECTIONS: usize = 64;

/// A client has so long to send its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection lives no longer than this, whatever it waits for: also for a client that reads slowly or not at all.
const LIFETIME: Duration = Duration::from_secs(10);

/// Largest request head, bytes.
const HEAD_LIMIT: usize = 16 << 10;

/// From the beginning of one writing of a page to the next.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the control thread may take to write a page, before the answer is that it did not.
const BUSY: Duration = Duration::from_millis(800);

/// A control thread that has written nothing for so long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Whether the process should be restarted.
    Healthz,
    /// Whether pods on this node can be served.
    Readyz,
    /// For Prometheus.
    Metrics,
}

impl Page {
    const ALL: [Self; 3] = [Self::Healthz, Self::Readyz, Self::Metrics];

    const fn path(self) -> &'static str {
        match self {
            Self::Healthz => "/healthz",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
        }
    }
}

/// An answer: status, content type, body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// Plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into().into() }
    }
}

/// Binds the endpoint, so that a port in use is an error at start and not a line in the log.
///
/// # Errors
/// The address or the port cannot be had.
pub fn bind(at: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(at)?;
        socket.listen(BACKLOG)
    };
    match listen() {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "health endpoint {at} is in use (`ss -ltnp 'sport = :{}'` names the program): stop it, or set --healthz-port",
            at.port()
        ),
        Err(error) => Err(error)
            .with_context(|| format!("cannot listen on {at}: check --healthz-ip and --healthz-port")),
    }
}

/// A page that the control thread is to write.
struct Order {
    page: Page,
    answer: oneshot::Sender<Answer>,
}

/// Serves until it is dropped; `answer` writes a page.
///
/// # Errors
/// The thread that speaks with clients cannot be started.
pub async fn serve(listener: TcpListener, tasks: Tasks, answer: impl Fn(Page) -> Answer) -> Result<()> {
    let listener = listener.into_std().context("cannot hand over the health endpoint")?;
    let (orders, mut ordered) = mpsc::channel(Page::ALL.len());
    on_own_thread(&tasks, "health-clients", move || accept(listener, orders))?;
    while let Some(order) = ordered.recv().await {
        // Whoever asked may be gone.
        let _ = order.answer.send(answer(order.page));
    }
    // That thread has ended. It is a matter of the whole daemon, which hears of it by its name.
    std::future::pending().await
}

async fn accept(listener: std::net::TcpListener, orders: mpsc::Sender<Order>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let desk = Rc::new(Desk::new(orders));
    let mut clients = Clients::new("health-connection", descriptors::share(CONNECTIONS), Duration::ZERO);
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of descriptors: the next connection may find one free.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let desk = desk.clone();
        clients.admit(from.ip(), |_| converse(stream, desk)).await;
    }
}

async fn converse(stream: TcpStream, desk: Rc<Desk>) {
    let service = service_fn(|request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(respond(&request, &desk).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        // Whoever sends a thousand requests at once gets one answer, and probes make a connection each time anyway.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away in the middle is its own business.
    let _ = timeout(LIFETIME, connection).await;
}

async fn respond<B>(request: &Request<B>, desk: &Desk) -> Response<Full<Bytes>> {
    let page = Page::ALL.into_iter().find(|page| page.path() == request.uri().path());
    let answer = if request.method() != Method::GET && request.method() != Method::HEAD {
        Answer::text(405, "this endpoint is read-only\n")
    } else if let Some(page) = page {
        desk.page(page).await
    } else {
        Answer::text(404, "try /healthz, /readyz or /metrics\n")
    };
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(answer.content_type));
    response
}

/// Where pages are asked for: everybody who waits for a page gets the same copy of it.
struct Desk {
    orders: mpsc::Sender<Order>,
    pages: [RefCell<Option<Writing>>; Page::ALL.len()],
}

/// A page that is being written, or the last that was.
#[derive(Clone)]
struct Writing {
    begins: Instant,
    answer: Shared<LocalBoxFuture<'static, Option<Answer>>>,
}

impl Desk {
    fn new(orders: mpsc::Sender<Order>) -> Self {
        Self { orders, pages: Default::default() }
    }

    /// The page as it is now. It is never older than the question, but for one that is just being written.
    async fn page(&self, page: Page) -> Answer {
        let writing = self.writing(page);
        match timeout(BUSY, writing.answer).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Answer::text(500, "flanneld ends"),
            Err(_) => {
                let busy = writing.begins.elapsed();
                let text = format!("the control thread has been busy for {} s", busy.as_secs());
                match page {
                    // A moment is no reason to restart anything.
                    Page::Healthz if busy < STUCK => {
                        Answer::text(200, format!("flanneld is running: {text}"))
                    }
                    Page::Healthz => Answer::text(500, format!("flanneld is stuck: {text}")),
                    Page::Readyz | Page::Metrics => Answer::text(503, text),
                }
            }
        }
    }

    fn writing(&self, page: Page) -> Writing {
        let mut last = self.pages[page as usize].borrow_mut();
        // One that was finished after everybody had given up on it is old by now.
        if let Some(writing) = &*last
            && writing.answer.clone().now_or_never().is_none()
        {
            return writing.clone();
        }
        let now = Instant::now();
        let begins = last.as_ref().map_or(now, |last| now.max(last.begins + PAUSE));
        let orders = self.orders.clone();
        let answer = async move {
            sleep_until(begins).await;
            let (answer, written) = oneshot::channel();
            orders.send(Order { page, answer }).await.ok()?;
            written.await.ok()
        };
        let writing = Writing { begins, answer: answer.boxed_local().shared() };
        *last = Some(writing.clone());
        writing
    }
}

#[cfg(test)]
mod tests;
