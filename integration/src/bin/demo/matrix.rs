//! Who has reached whom so far, as a grid of round trips.

use std::collections::BTreeMap;
use std::time::Duration;

use console::style;

const CELL: usize = 7;
const LABEL: usize = 6;

/// What is known about one pair.
#[derive(Clone, Copy)]
pub(crate) enum Cell {
    /// Reached through the tunnel or within the node; the round trip.
    Reached(Duration),
    /// Did not answer although it should.
    Failed,
    /// Does not answer, as it should be: one of the two has left.
    Gone,
}

/// Askers down, pods across.
#[derive(Default)]
pub(crate) struct Matrix {
    rows: Vec<String>,
    columns: Vec<String>,
    cells: BTreeMap<(String, String), Cell>,
}

impl Matrix {
    /// Adds a row for an asker, unless there is one.
    pub(crate) fn add_row(&mut self, name: &str) {
        if !self.rows.iter().any(|row| row == name) {
            self.rows.push(name.to_owned());
        }
    }

    /// Adds a column for a pod, unless there is one.
    pub(crate) fn add_column(&mut self, name: &str) {
        if !self.columns.iter().any(|column| column == name) {
            self.columns.push(name.to_owned());
        }
    }

    /// Fills one cell.
    pub(crate) fn set(&mut self, from: &str, to: &str, cell: Cell) {
        self.cells.insert((from.to_owned(), to.to_owned()), cell);
    }

    /// The grid, ready to print; nothing while it has no column.
    pub(crate) fn lines(&self) -> Vec<String> {
        if self.columns.is_empty() {
            return Vec::new();
        }
        let label = |name: &str| style(format!("{name:<LABEL$}")).dim();
        let header: String = self.columns.iter().map(|name| format!("{name:>CELL$}")).collect();
        let mut lines = vec![format!("      {}{}", label("µs"), style(header).dim())];
        for row in &self.rows {
            let cells: String = self.columns.iter().map(|column| self.cell(row, column)).collect();
            lines.push(format!("      {}{cells}", label(row)));
        }
        lines
    }

    fn cell(&self, row: &str, column: &str) -> String {
        let right = |text: &str| format!("{text:>CELL$}");
        if row == column {
            return style(right("\u{2500}")).dim().to_string();
        }
        match self.cells.get(&(row.to_owned(), column.to_owned())) {
            None => style(right("\u{b7}")).dim().to_string(),
            Some(Cell::Failed) => style(right("\u{2718}")).red().bold().to_string(),
            Some(Cell::Gone) => style(right("gone")).dim().to_string(),
            Some(Cell::Reached(rtt)) => {
                let text = style(format!("{:>CELL$}", rtt.as_micros())).green();
                // Within one node no packet meets the tunnel.
                if node_of(row) == node_of(column) { text.dim().to_string() } else { text.to_string() }
            }
        }
    }
}

fn node_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}
