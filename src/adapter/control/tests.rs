use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::{Duration, timeout};

use super::*;
use crate::adapter::tasks;
use crate::view::Request;

const PATIENCE: Duration = Duration::from_secs(10);

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flanneld.sock");
    (directory, path)
}

/// Serves `answer` on a socket while `client` runs on a thread of its own.
async fn beside<F, Answer, T>(answer: F, client: impl FnOnce(&Path) -> T + Send + 'static) -> T
where
    F: Fn(Request, Out) -> Answer,
    Answer: Future<Output = anyhow::Result<()>>,
    T: Send + 'static,
{
    let (_directory, path) = directory();
    let listener = bind(&path).unwrap();
    tokio::select! {
        ended = serve(listener, tasks::watched().0, answer) => panic!("{ended:?}"),
        done = spawn_blocking(move || client(&path)) => done.unwrap(),
    }
}

async fn three(_: Request, out: Out) -> anyhow::Result<()> {
    out.send(&json!({ "node": "n1", "routes": [1] })).await?;
    out.send(&json!({ "routes": [2, 3] })).await?;
    out.send(&json!({ "node": "later", "refused_pods": ["p"] })).await
}

fn frame(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&length[..], text.as_bytes()].concat()
}

#[tokio::test]
async fn parts_make_one_answer() {
    let whole = beside(three, |path| ask(path, PATIENCE, &Request::Routes).unwrap().whole().unwrap()).await;
    assert_eq!(whole, json!({ "node": "n1", "routes": [1, 2, 3], "refused_pods": ["p"] }));
}

#[tokio::test]
async fn items_come_one_by_one_and_an_error_comes_behind_them() {
    let answer = |_, out: Out| async move {
        out.send(&1).await?;
        anyhow::bail!("no more of this")
    };
    let client = |path: &Path| {
        let mut answers = ask(path, PATIENCE, &Request::Routes).unwrap();
        let item = answers.item().unwrap();
        (item, answers.item().unwrap_err().to_string(), answers.item().unwrap())
    };
    let told = beside(answer, client).await;
    assert_eq!(told, (Some(Value::from(1)), "no more of this".into(), None));
}

#[tokio::test]
async fn an_item_that_no_frame_carries_is_an_error_and_not_half_an_answer() {
    let answer = |_, out: Out| async move { out.send(&"x".repeat(ANSWER_LIMIT)).await };
    let client = |path: &Path| ask(path, PATIENCE, &Request::Routes).unwrap().whole();
    let error = beside(answer, client).await.unwrap_err().to_string();
    assert!(error.contains("more than the local socket carries"), "{error}");
}

/// Tells when it is dropped.
struct Dropped(Rc<Cell<bool>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[tokio::test]
async fn work_ends_when_the_client_hangs_up() {
    let (_directory, path) = directory();
    let listener = bind(&path).unwrap();
    let ended = Rc::new(Cell::new(false));
    let flag = ended.clone();
    let answer = move |_, out: Out| {
        let working = Dropped(flag.clone());
        async move {
            out.send(&1).await?;
            std::future::pending::<()>().await;
            drop(working);
            Ok(())
        }
    };
    let client = spawn_blocking(move || {
        let mut answers = ask(&path, PATIENCE, &Request::Routes).unwrap();
        assert!(answers.item().unwrap().is_some());
    });
    let served = async {
        tokio::select! {
            outcome = serve(listener, tasks::watched().0, answer) => panic!("{outcome:?}"),
            () = async {
                client.await.unwrap();
                while !ended.get() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            } => {}
        }
    };
    timeout(PATIENCE, served).await.expect("the work goes on for nobody");
}

#[tokio::test]
async fn silent_clients_and_such_that_never_read_hold_up_nobody() {
    let answer = |_, out: Out| async move {
        for _ in 0..1000 {
            out.send(&"x".repeat(64 << 10)).await?;
        }
        Ok(())
    };
    let client = |path: &Path| {
        let question = serde_json::to_string(&Question { speaker: Speaker::own(), request: Request::Routes });
        let question = frame(&question.unwrap());
        let connect = |n: usize| {
            let mut stream = UnixStream::connect(path).unwrap();
            if n.is_multiple_of(2) {
                let _ = stream.write_all(&question);
            }
            stream
        };
        let _held: Vec<_> = (0..200).map(connect).collect();
        let begun = std::time::Instant::now();
        let first = ask(path, PATIENCE, &Request::Routes).unwrap().item().unwrap();
        assert!(first.is_some());
        begun.elapsed()
    };
    let took = beside(answer, client).await;
    // A hundred clients that may each block a frame for five seconds, sixteen at a time, would take half a minute; a busy
    // machine alone has been seen to take 11 s.
    assert!(took < Duration::from_secs(25), "{took:?}");
}

#[tokio::test]
async fn hostile_bytes_get_an_error_or_nothing_and_the_next_client_its_answer() {
    let client = |path: &Path| {
        let question = |head: &str| frame(&format!("{{{head}\"request\":{{\"command\":\"routes\"}}}}"));
        let own = format!("\"protocol\":{PROTOCOL},\"version\":\"x\",");
        let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![0xff; 100_000], "frame size too big"),
            (b"{\"command\":\"routes\"}\n".to_vec(), "frame size too big"),
            (vec![0, 0, 0, 0], "not a question"),
            (frame("null"), "not a question"),
            (frame(&deep), "not a question"),
            (question(""), "not a question"),
            (question("\"protocol\":-1,\"version\":\"x\","), "not a question"),
            (question("\"protocol\":77,\"version\":\"x\","), "speaks version 77"),
            (frame(&format!("{{{own}\"request\":{{\"command\":\"dance\"}}}}")), "does not know this request"),
            (frame(&format!("{{{own}\"request\":17}}")), "does not know this request"),
        ];
        for (bytes, want) in cases {
            let mut stream = UnixStream::connect(path).unwrap();
            let _ = stream.write_all(&bytes);
            let mut said = Vec::new();
            // Bytes that the daemon did not read make it reset the connection behind its answer.
            let _ = stream.read_to_end(&mut said);
            let said = String::from_utf8_lossy(&said);
            assert!(said.contains(want), "{want} is missing in {said}");
            assert_eq!(ask(path, PATIENCE, &Request::Routes).unwrap().whole().unwrap()["node"], "n1");
        }
    };
    beside(three, client).await;
}

/// What a client says to a daemon that sends `bytes`.
fn told_by(bytes: Vec<u8>) -> String {
    let (_directory, path) = directory();
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(&bytes);
    });
    let error = ask(&path, PATIENCE, &Request::Routes).and_then(Answers::whole).unwrap_err();
    daemon.join().unwrap();
    format!("{error:#}")
}

#[test]
fn a_daemon_of_another_version_is_named_with_the_remedy() {
    let text = told_by(frame(r#"{"protocol":9,"version":"3.2.1 (abc)","more":true}"#));
    let [own, _] = crate::VERSION;
    for part in ["3.2.1 (abc)", "version 9", own, "version 1 of the local socket", "restart the daemon"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    for strange in [b"{\"error\":\"not a request\"}\n".to_vec(), frame("17"), vec![0xff; 9]] {
        let text = told_by(strange);
        assert!(text.contains("restart the daemon with this flanneld"), "{text}");
    }
    assert!(told_by(Vec::new()).contains("hung up"));
}

#[test]
fn a_silent_daemon_is_named_without_an_errno() {
    let (_directory, path) = directory();
    let _listener = UnixListener::bind(&path).unwrap();
    let error = ask(&path, Duration::from_millis(50), &Request::Routes).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("has not said who it is for 0.05 s") && !text.contains("os error"), "{text}");
}

#[test]
fn the_socket_is_for_root_from_its_first_moment() {
    let (_directory, path) = directory();
    // Left behind by a daemon that was killed.
    std::fs::write(&path, "").unwrap();
    let _listener = bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic_or_allocate_more_than_a_frame(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096)) {
        use tokio_util::codec::Decoder as _;
        let mut codec = codec(QUESTION_LIMIT);
        let mut unread = bytes::BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = codec.decode(&mut unread) {}
        proptest::prop_assert!(unread.capacity() <= 4096 + 2 * QUESTION_LIMIT);
    }
}
