//! Questions to agnhost's netexec: by ourselves, and by one pod to another.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::netns::Netns;
use serde_json::Value;

/// Where every pod of the suite serves HTTP.
pub(crate) const HTTP: u16 = 8080;
/// Where it serves datagrams.
pub(crate) const UDP: u16 = 8081;
/// Generous: what is looked for is a lost packet, not a slow machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// The body that `GET path` gives.
///
/// # Errors
/// When nobody answers, or not with 200.
pub(crate) fn get(from: &Netns, to: SocketAddr, path: &str) -> Result<String> {
    let mut stream = from
        .run(|| TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}")))
        .with_context(|| format!("from {}", from.name()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer from {to}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("half an answer from {to}"))?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{to} answered `{status}` to {path}: {body}");
    Ok(body.to_owned())
}

/// How a pod asks.
#[derive(Clone, Copy)]
pub(crate) enum Protocol {
    Http,
    Udp,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Udp => "udp",
        }
    }

    /// The port at which netexec answers it.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http => HTTP,
            Self::Udp => UDP,
        }
    }
}

/// Has the pod `via` ask `to`, once, and returns the answer.
///
/// # Errors
/// When there is none.
pub(crate) fn dial(
    from: &Netns,
    via: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
    question: &str,
) -> Result<String> {
    let path = format!(
        "/dial?request={}&protocol={}&host={}&port={}&tries=1",
        escape(question),
        protocol.name(),
        to.ip(),
        to.port()
    );
    let body = get(from, SocketAddr::new(via, HTTP), &path)?;
    let answer: Value = serde_json::from_str(&body).with_context(|| format!("not JSON: {body}"))?;
    let said = answer["responses"].get(0).and_then(Value::as_str);
    let said =
        said.with_context(|| format!("{via} asked {to} over {}: {}", protocol.name(), answer["errors"]))?;
    Ok(said.to_owned())
}

/// Runs a shell command in the pod `via` and returns what it printed.
///
/// # Errors
/// When it fails.
pub(crate) fn shell(from: &Netns, via: IpAddr, command: &str) -> Result<String> {
    let body = get(from, SocketAddr::new(via, HTTP), &format!("/shell?shellCommand={}", escape(command)))?;
    let answer: Value = serde_json::from_str(&body).with_context(|| format!("not JSON: {body}"))?;
    ensure!(answer.get("error").is_none(), "`{command}` in {via}: {answer}");
    Ok(answer["output"].as_str().unwrap_or_default().trim().to_owned())
}

/// The address of `address:port`, as netexec tells it.
pub(crate) fn host_of(client: &str) -> &str {
    client.rsplit_once(':').map_or(client, |(host, _)| host).trim_matches(['[', ']'])
}

fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
