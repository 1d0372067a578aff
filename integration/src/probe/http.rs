//! HTTP requests to [`super::netexec`] from inside a namespace.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};

use super::netexec::HTTP_PORT;
use super::udp::PATIENCE;
use crate::netns::Netns;

/// The body of a successful `GET path`.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn get(from: &Netns, to: impl Into<IpAddr>, path: &str) -> Result<String> {
    let body = request(from, to.into(), &format!("GET {path} HTTP/1.0\r\n\r\n"), &[])?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Posts `body` to `/echo` and returns what comes back.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub fn echo(from: &Netns, to: impl Into<IpAddr>, body: &[u8]) -> Result<Vec<u8>> {
    request(from, to.into(), &format!("POST /echo HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len()), body)
}

fn request(from: &Netns, to: IpAddr, head: &str, body: &[u8]) -> Result<Vec<u8>> {
    let address = SocketAddr::from((to, HTTP_PORT));
    let mut stream = from.run(|| {
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connect to {address}"))
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("no answer from {address}"))?;
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("an answer without a blank line")?;
    ensure!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer[..end]));
    Ok(answer.split_off(end + 4))
}
