//! The side of the daemon. A thread of its own speaks with the clients; the control thread only hears whole questions and
//! hands over items of an answer, so a client that is slow, silent or hostile cannot hold it up.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener as Listener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::codec::{Encoder as _, FramedRead, LengthDelimitedCodec};

use super::{ANSWER_LIMIT, PROTOCOL, QUESTION_LIMIT, Question, Reply, Speaker, codec};
use crate::adapter::clients::{Clients, Tenure, on_own_thread};
use crate::adapter::file;
use crate::adapter::tasks::Tasks;
use crate::view::Request;

/// Clients at a time.
const CLIENTS: usize = 16;

/// A client may take so long to send its question, and to read one frame.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client has so long to ask before another may take its place.
const FIRST: Duration = Duration::from_millis(50);

/// Whoever has asked is not sent away for this time, and for as long again with each item of the answer.
const TENURE: Duration = Duration::from_secs(2);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Items of an answer that may wait to be sent.
const AHEAD: usize = 2;

/// Binds the socket, for root only from its first moment. Whoever holds the run lock may replace a socket that a killed
/// daemon left behind.
///
/// # Errors
/// The directory cannot be written.
pub fn bind(path: &Path) -> Result<UnixListener> {
    file::remove(path)?;
    let bind = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Linux gives the name that bind makes the mode of the socket itself (unix_bind_bsd in net/unix/af_unix.c).
        nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        io::Result::Ok(UnixListener::from(socket))
    };
    bind().with_context(|| {
        format!("cannot make the socket {}: choose another place with --subnet-file", path.display())
    })
}

/// Where the items of an answer go.
#[derive(Debug, Clone)]
pub struct Out(mpsc::Sender<Bytes>);

impl Out {
    /// Hands over one item, and waits while the client is slow.
    ///
    /// # Errors
    /// The client hung up, or the item is too large for one frame.
    pub async fn send(&self, item: &impl Serialize) -> Result<()> {
        self.reply(&Reply::Item(item)).await
    }

    async fn reply(&self, reply: &Reply<impl Serialize>) -> Result<()> {
        let text = serde_json::to_vec(reply).context("cannot write the answer")?;
        if text.len() > ANSWER_LIMIT {
            bail!("a part of the answer has {} bytes, more than the local socket carries", text.len());
        }
        self.0.send(text.into()).await.context("the client hung up")
    }

    /// The last word.
    async fn finish(&self, outcome: Result<()>) {
        let last = match outcome {
            Ok(()) => Reply::End::<()>,
            Err(error) => Reply::Error(format!("{error:#}")),
        };
        // If the client is gone, nobody waits for it.
        let _ = self.reply(&last).await;
    }
}

/// A question, and where its answer goes.
struct Order {
    request: Request,
    out: Out,
}

/// Serves until it is dropped. The work for a client is dropped when the client hangs up.
///
/// # Errors
/// The thread that speaks with clients cannot be started.
pub async fn serve<F, Answer>(listener: UnixListener, tasks: Tasks, answer: F) -> Result<()>
where
    F: Fn(Request, Out) -> Answer,
    Answer: Future<Output = Result<()>>,
{
    let (say, mut orders) = mpsc::channel(CLIENTS);
    on_own_thread(&tasks, "local-clients", move || accept(listener, say))?;
    let mut working = FuturesUnordered::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                // Otherwise that thread has ended. It is a matter of the whole daemon, which hears of it by its name.
                let Some(Order { request, out }) = order else { return std::future::pending().await };
                let work = answer(request, out.clone());
                working.push(async move {
                    tokio::select! {
                        outcome = work => out.finish(outcome).await,
                        () = out.0.closed() => {}
                    }
                });
            }
            Some(()) = working.next() => {}
        }
    }
}

async fn accept(listener: UnixListener, say: mpsc::Sender<Order>) -> io::Result<()> {
    let listener = Listener::from_std(listener)?;
    let mut clients = Clients::new("local-connection", CLIENTS, FIRST);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the next client may find one free.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let say = say.clone();
        let serve = |tenure| async move {
            // A client that breaks off is its own business.
            let _ = converse(stream, &say, &tenure).await;
        };
        clients.admit((), serve).await;
    }
}

async fn converse(stream: UnixStream, say: &mpsc::Sender<Order>, tenure: &Tenure) -> Result<()> {
    let (reader, writer) = stream.into_split();
    let mut questions = FramedRead::new(reader, codec(QUESTION_LIMIT));
    let mut frames = Frames { writer, codec: codec(ANSWER_LIMIT), buffer: BytesMut::new() };
    let question = timeout(PATIENCE, questions.next()).await?;
    tenure.extend(TENURE);
    frames.send(&serde_json::to_vec(&Speaker::own())?).await?;
    let request = match question.context("no question")?.map_err(anyhow::Error::from).and_then(|f| read(&f)) {
        Ok(request) => request,
        Err(error) => {
            return frames.send(&serde_json::to_vec(&Reply::Error::<()>(format!("{error:#}")))?).await;
        }
    };
    let (out, mut items) = mpsc::channel(AHEAD);
    let answered = async {
        say.send(Order { request, out: Out(out) }).await?;
        frames.send_all(&mut items, tenure).await
    };
    tokio::select! {
        sent = answered => sent,
        () = hung_up(&mut questions) => Ok(()),
    }
}

/// What a client asks.
fn read(frame: &[u8]) -> Result<Request> {
    let own = Speaker::own();
    let who: Speaker = serde_json::from_slice(frame).context("not a question of flanneld's")?;
    if who.protocol != PROTOCOL {
        bail!(
            "the client speaks version {} of the local socket, the daemon version {PROTOCOL}",
            who.protocol
        );
    }
    // Twice, because what comes before the request decides how the request is to be read.
    let Question { request, .. } = serde_json::from_slice::<Question<Value>>(frame)?;
    serde_json::from_value(request).with_context(|| {
        format!(
            "the daemon is {} and does not know this request of flanneld {}: restart the daemon with that one",
            own.version, who.version
        )
    })
}

/// Ends when the client hangs up; whoever goes on talking is treated the same, there is nothing more to say.
async fn hung_up(questions: &mut FramedRead<OwnedReadHalf, LengthDelimitedCodec>) {
    let _ = questions.next().await;
}

struct Frames {
    writer: OwnedWriteHalf,
    codec: LengthDelimitedCodec,
    buffer: BytesMut,
}

impl Frames {
    async fn send_all(&mut self, items: &mut mpsc::Receiver<Bytes>, tenure: &Tenure) -> Result<()> {
        while let Some(item) = items.recv().await {
            // One that does not read is idle soon.
            tenure.extend(FIRST);
            self.send(&item).await?;
            tenure.extend(TENURE);
        }
        Ok(())
    }

    async fn send(&mut self, text: &[u8]) -> Result<()> {
        self.buffer.clear();
        self.codec.encode(text, &mut self.buffer)?;
        Ok(timeout(PATIENCE, self.writer.write_all(&self.buffer)).await??)
    }
}
