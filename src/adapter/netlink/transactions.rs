//! Transactions of nftables, on a thread of their own.
//!
//! The kernel carries a transaction out while it is being sent, and those of a whole network namespace one after
//! another: behind somebody who loads ten thousand rules, the thread that sends stands still.

use std::io;

use super::blocking::Socket;
use super::wire::{Change, Error, Nfnetlink};

/// Makes transactions, one at a time.
#[derive(Debug, Default)]
pub struct Transactions(Option<Socket<Nfnetlink>>);

impl Transactions {
    /// Carries out changes as one transaction: all of them, or none.
    ///
    /// # Errors
    /// The kernel's first refusal, and which of the messages it is about.
    pub async fn commit(&mut self, changes: Vec<Change<Nfnetlink>>) -> Result<(), Error> {
        // A transaction that nobody waits for any more keeps its socket; the next one has another.
        let kept = self.0.take();
        let made = tokio::task::spawn_blocking(move || {
            let mut socket = kept.map_or_else(Socket::open, Ok)?;
            let outcome = socket.commit(&changes);
            Ok((socket, outcome))
        });
        let (socket, outcome) = made.await.map_err(io::Error::other)?.map_err(Error::Socket)?;
        self.0 = Some(socket);
        outcome
    }
}
