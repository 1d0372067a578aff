use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::TcpStream as Client;

use tokio::task::spawn_blocking;

use super::*;

fn request(at: SocketAddr, text: &str) -> Client {
    let mut stream = Client::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

fn get(at: SocketAddr, path: &str) -> String {
    let mut said = String::new();
    request(at, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).read_to_string(&mut said).unwrap();
    said
}

async fn beside<T: Send + 'static>(
    answer: impl Fn(Page) -> Answer,
    client: impl FnOnce(SocketAddr) -> T + Send + 'static,
) -> T {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    tokio::select! {
        ended = serve(listener, crate::adapter::tasks::watched().0, answer) => panic!("{ended:?}"),
        done = spawn_blocking(move || client(at)) => done.unwrap(),
    }
}

#[tokio::test]
async fn pages_are_told_apart_and_nothing_is_written() {
    let said = beside(
        |page| Answer::text(200, format!("{page:?}")),
        |at| {
            let post = "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
            let mut refused = String::new();
            request(at, post).read_to_string(&mut refused).unwrap();
            [get(at, "/healthz"), get(at, "/readyz"), get(at, "/metrics"), get(at, "/x"), refused]
        },
    )
    .await;
    for (said, parts) in said.iter().zip([
        ["200", "Healthz"],
        ["200", "Readyz"],
        ["200", "Metrics"],
        ["404", "try"],
        ["405", "only"],
    ]) {
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
    }
}

#[tokio::test]
async fn many_who_ask_at_once_cost_little_writing_and_each_gets_what_is_true_now() {
    let written = Rc::new(Cell::new(0));
    let count = written.clone();
    let begun = Instant::now();
    let answers = beside(
        move |_| {
            count.set(count.get() + 1);
            Answer::text(200, format!("page {}.", count.get()))
        },
        |at| {
            let text = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
            for _ in 0..20 {
                let _flood: Vec<_> = (0..40).map(|_| request(at, &text)).collect();
            }
            [get(at, "/metrics"), get(at, "/metrics")]
        },
    )
    .await;
    let number = |said: &str| -> u32 {
        let rest = said.split("page ").nth(1).unwrap();
        rest.trim_end_matches('.').parse().unwrap()
    };
    assert!(number(&answers[0]) < number(&answers[1]), "{answers:?}");
    let most = begun.elapsed().as_millis() / PAUSE.as_millis() + 2;
    assert!(written.get() <= most, "{} pages were written, {most} may be", written.get());
}

#[tokio::test]
async fn connections_that_never_speak_make_room_for_one_that_does() {
    let took = beside(
        |_| Answer::text(200, "fine"),
        |at| {
            // As many as this process may have; each end counts.
            let _held: Vec<_> = (0..300).map(|_| Client::connect(at).unwrap()).collect();
            let begun = std::time::Instant::now();
            assert!(get(at, "/healthz").ends_with("fine"));
            begun.elapsed()
        },
    )
    .await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_moment_without_the_control_thread_is_alive_and_a_minute_is_not() {
    let (orders, mut ordered) = mpsc::channel(3);
    let desk = Desk::new(orders);
    let alive = desk.page(Page::Healthz).await;
    assert_eq!(alive.status, 200, "{alive:?}");
    assert_eq!(desk.page(Page::Readyz).await.status, 503);
    tokio::time::sleep(STUCK).await;
    let stuck = desk.page(Page::Healthz).await;
    assert_eq!(stuck.status, 500, "{stuck:?}");
    // What was written for those who did not wait for it is old for the next.
    for _ in 0..2 {
        ordered.recv().await.unwrap().answer.send(Answer::text(200, "old")).unwrap();
    }
    tokio::time::sleep(STUCK).await;
    let fresh = async { ordered.recv().await.unwrap().answer.send(Answer::text(200, "fresh")).unwrap() };
    let (answer, ()) = tokio::join!(desk.page(Page::Healthz), fresh);
    assert_eq!(answer.body, "fresh");
}
