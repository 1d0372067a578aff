//! Rules of nftables in tables that containers share. The comment of a rule says whose it is.

use nix::errno::Errno;

use crate::adapter::netlink::blocking::Socket;
use crate::adapter::netlink::wire::{Error, Nfnetlink};
use crate::adapter::nft::tables;
use crate::cni::{CniError, Code};
use crate::tables::{Rule, Table, TableName};

/// A socket in the namespace that it was opened in.
#[derive(Debug)]
pub struct Rules(Socket<Nfnetlink>);

impl Rules {
    /// Opens one where this thread is.
    ///
    /// # Errors
    /// Code 5: this kernel has no nftables.
    pub fn open() -> Result<Self, CniError> {
        Socket::open()
            .map(Self)
            .map_err(|error| CniError::new(Code::Io, "cannot open a socket for nftables", error.to_string()))
    }

    /// Makes what is missing of a table and adds rules, in one step.
    ///
    /// # Errors
    /// Code 5.
    pub fn add(&mut self, table: &Table, rules: &[(&str, Rule)]) -> Result<(), CniError> {
        self.0.commit(&tables::add(table, rules)).map_err(|error| failed("write", table.name, &error))
    }

    /// How many rules of a chain have this comment.
    ///
    /// # Errors
    /// Code 5.
    pub fn count(&mut self, table: TableName, chain: &str, comment: &str) -> Result<usize, CniError> {
        Ok(self.of(table, chain, comment)?.len())
    }

    /// Removes all rules of these chains that have this comment. Nothing to remove is fine.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove(&mut self, table: TableName, chains: &[&str], comment: &str) -> Result<(), CniError> {
        let mut changes = Vec::new();
        for chain in chains {
            let handles = self.of(table, chain, comment)?.into_iter();
            changes.extend(handles.map(|handle| tables::remove_rules(table, chain, Some(handle))));
        }
        match self.0.commit(&changes) {
            // Another plugin was faster.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            done => done.map_err(|error| failed("change", table, &error)),
        }
    }

    /// Handles of the rules with this comment.
    fn of(&mut self, table: TableName, chain: &str, comment: &str) -> Result<Vec<u64>, CniError> {
        match self.0.dump(&tables::question(table, chain), tables::commented) {
            Ok(rules) => {
                let own = rules.into_iter().filter(|(_, whose)| whose == comment);
                Ok(own.map(|(handle, _)| handle).collect())
            }
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(failed("read", table, &error)),
        }
    }
}

fn failed(doing: &str, table: TableName, error: &Error) -> CniError {
    CniError::new(
        Code::Io,
        format!("cannot {doing} the table {table} of nftables"),
        format!("{error}; plugins need CAP_NET_ADMIN and a kernel with nf_tables and nft_nat"),
    )
}
