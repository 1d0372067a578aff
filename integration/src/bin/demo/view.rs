//! The terminal: one table of claims that fills in place, the matrix below it.
//! Piped, with NO_COLOR or on a dumb terminal, each row is printed once, when it is settled.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use console::{Term, measure_text_width, style, truncate_str};

use super::matrix::Matrix;

const FRAME: Duration = Duration::from_millis(66);
const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const WIDEST: usize = 130;
const BAR: usize = 24;

/// A handle on the screen; clones share it.
#[derive(Clone)]
pub(crate) struct View(Arc<Mutex<Screen>>);

struct Screen {
    term: Term,
    live: bool,
    /// Lines on the terminal that the next frame replaces.
    drawn: usize,
    frame: usize,
    started: Instant,
    head: String,
    rows: Vec<Row>,
    matrix: Matrix,
}

/// One claim of the table.
struct Row {
    claim: &'static str,
    state: State,
    /// What was measured, or how far the measuring is.
    detail: String,
    bar: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Held,
    Failed,
}

impl View {
    /// Takes over standard output, with a table of claims that are yet to be shown.
    pub(crate) fn new(head: String, claims: &[&'static str]) -> Self {
        let live = std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        console::set_colors_enabled(live);
        let row =
            |claim: &&'static str| Row { claim, state: State::Waiting, detail: String::new(), bar: None };
        let view = Self(Arc::new(Mutex::new(Screen {
            term: Term::buffered_stdout(),
            live,
            drawn: 0,
            frame: 0,
            started: Instant::now(),
            head,
            rows: claims.iter().map(row).collect(),
            matrix: Matrix::default(),
        })));
        if live {
            let _ = view.lock().term.hide_cursor();
            let screen = Arc::downgrade(&view.0);
            thread::spawn(move || {
                while let Some(screen) = screen.upgrade() {
                    screen.lock().unwrap_or_else(PoisonError::into_inner).draw();
                    drop(screen);
                    thread::sleep(FRAME);
                }
            });
        } else {
            let mut screen = view.lock();
            let head = format!("\n  {}\n\n", screen.head);
            screen.print(&head);
        }
        view
    }

    /// Starts showing a claim.
    pub(crate) fn begin(&self, claim: &str) {
        self.change(claim, |row| row.state = State::Running);
    }

    /// Says how the running claims are getting on.
    pub(crate) fn progress(&self, detail: impl Into<String>) {
        let mut screen = self.lock();
        if let Some(row) = screen.rows.iter_mut().find(|row| row.state == State::Running) {
            row.detail = detail.into();
        }
    }

    /// The same with a bar; `done` is from 0 to 1.
    pub(crate) fn bar(&self, done: f64, detail: impl Into<String>) {
        let mut screen = self.lock();
        if let Some(row) = screen.rows.iter_mut().find(|row| row.state == State::Running) {
            row.bar = Some(done.clamp(0.0, 1.0));
            row.detail = detail.into();
        }
    }

    /// Settles a claim.
    pub(crate) fn end(&self, claim: &str, held: bool, detail: &str) {
        self.change(claim, |row| {
            row.state = if held { State::Held } else { State::Failed };
            detail.clone_into(&mut row.detail);
            row.bar = None;
        });
        let mut screen = self.lock();
        if !screen.live {
            let width = screen.claim_width();
            let line = screen.rows.iter().find(|row| row.claim == claim).map(|row| row.line(' ', width));
            screen.print(&format!("{}\n", line.unwrap_or_default()));
        }
    }

    /// Changes the matrix.
    pub(crate) fn matrix(&self, change: impl FnOnce(&mut Matrix)) {
        change(&mut self.lock().matrix);
    }

    /// Leaves the finished table on the terminal, what failed in full, and a verdict. True when every claim held.
    pub(crate) fn close(&self) -> bool {
        let mut screen = self.lock();
        let held = screen.rows.iter().filter(|row| row.state == State::Held).count();
        let all = held == screen.rows.len();
        let mut out = screen.erase();
        if screen.live {
            let (width, columns) = (screen.claim_width(), screen.columns());
            out.push_str(&format!("\n  {}\n\n", screen.head));
            screen.rows.iter().for_each(|row| out.push_str(&row.wrapped(width, columns)));
        }
        for line in screen.matrix.lines() {
            out.push_str(&format!("\n{line}"));
        }
        for row in screen.rows.iter().filter(|row| row.state == State::Failed) {
            out.push_str(&format!("\n\n  {}: {}", style(row.claim).red().bold(), row.detail));
        }
        let sum = format!("{held} of {} claims held", screen.rows.len());
        let sum = if all { style(sum).green().bold() } else { style(sum).red().bold() };
        out.push_str(&format!("\n\n  {sum} in {:.1} s\n\n", screen.started.elapsed().as_secs_f64()));
        screen.print(&out);
        drop(screen);
        self.restore();
        all
    }

    /// Gives the terminal back. What is drawn stays; nothing is drawn after this.
    pub(crate) fn restore(&self) {
        let mut screen = self.lock();
        if std::mem::take(&mut screen.live) {
            let _ = screen.term.show_cursor();
            let _ = screen.term.flush();
        }
    }

    fn change(&self, claim: &str, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.lock().rows.iter_mut().find(|row| row.claim == claim) {
            change(row);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Screen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Screen {
    fn draw(&mut self) {
        if !self.live {
            return;
        }
        self.frame += 1;
        let mut lines = self.table();
        let matrix = self.matrix.lines();
        let (rows, columns) = self.term.size();
        // What is taller than the terminal cannot be redrawn in place: the matrix has to fit, or wait for the end.
        if lines.len() + matrix.len() + 2 < usize::from(rows) {
            lines.push(String::new());
            lines.extend(matrix);
        }
        let hidden = lines.len().saturating_sub(usize::from(rows).saturating_sub(1));
        lines.drain(..hidden);
        let mut out = self.erase();
        for line in &lines {
            out.push_str(&truncate_str(line, usize::from(columns).saturating_sub(1), "…"));
            out.push('\n');
        }
        self.drawn = lines.len();
        self.print(&out);
    }

    fn table(&self) -> Vec<String> {
        let spinner = SPINNER[self.frame % SPINNER.len()];
        let (width, columns) = (self.claim_width(), self.columns());
        let mut lines = vec![String::new(), format!("  {}", self.head), String::new()];
        let rows =
            self.rows.iter().map(|row| truncate_str(&row.line(spinner, width), columns, "…").into_owned());
        lines.extend(rows);
        lines
    }

    fn columns(&self) -> usize {
        usize::from(self.term.size().1).saturating_sub(1).min(WIDEST)
    }

    fn claim_width(&self) -> usize {
        self.rows.iter().map(|row| measure_text_width(row.claim)).max().unwrap_or(0)
    }

    /// Moves to the first line of the last frame and clears from there.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            drawn => format!("\x1b[{drawn}F\x1b[J"),
        }
    }

    /// One write per frame; terminals that know synchronized output (mode 2026) show it without flicker.
    fn print(&mut self, out: &str) {
        let out = if self.live { format!("\x1b[?2026h{out}\x1b[?2026l") } else { out.to_owned() };
        let _ = self.term.write_all(out.as_bytes());
        let _ = self.term.flush();
    }
}

impl Row {
    /// The settled row in full: what does not fit beside the claim goes on below itself.
    fn wrapped(&self, width: usize, columns: usize) -> String {
        // Two spaces, the mark, a space, the claim, two spaces.
        let indent = width + 6;
        let (mut out, mut used) = (self.line(' ', width), indent);
        if indent + measure_text_width(&self.detail) <= columns {
            return out + "\n";
        }
        out.truncate(out.len() - self.detail.lines().next().unwrap_or_default().len());
        for word in self.detail.lines().next().unwrap_or_default().split(' ') {
            if used + measure_text_width(word) > columns && used > indent {
                out.push_str(&format!("\n{:indent$}", ""));
                used = indent;
            }
            out.push_str(word);
            out.push(' ');
            used += measure_text_width(word) + 1;
        }
        out.truncate(out.trim_end().len());
        out + "\n"
    }

    fn line(&self, spinner: char, width: usize) -> String {
        let claim = format!("{:<width$}", self.claim);
        // An error may have many lines; the table shows the first, the end of the demo all.
        let detail = self.detail.lines().next().unwrap_or_default();
        match self.state {
            State::Waiting => style(format!("  · {claim}")).dim().to_string(),
            State::Held => format!("  {} {claim}  {detail}", style('✔').green()),
            State::Failed => format!("  {} {}  {detail}", style('✘').red().bold(), style(claim).red()),
            State::Running => {
                let detail = format!("{}{}", self.bar.map(bar).unwrap_or_default(), style(detail).dim());
                format!("  {} {}  {detail}", style(spinner).cyan(), style(claim).bold())
            }
        }
    }
}

fn bar(done: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and BAR")]
    let full = (done * BAR as f64).round() as usize;
    format!("{}{}  ", style("━".repeat(full)).cyan(), style("─".repeat(BAR - full)).dim())
}
