//! The board of concerns with a clock, and with the log that it speaks to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::report::{Board, Code, Concern, Level, Line, Readiness, Subject};

/// How often what waits for its time is looked at.
const TICK: Duration = Duration::from_secs(1);

/// What is wrong now. Whatever is raised and cleared here goes to the log as well, as far as it is news. Clones share the
/// board.
#[derive(Clone, Default)]
pub(super) struct Concerns(Rc<RefCell<Board>>);

impl Concerns {
    /// See [`Board::raise`].
    pub(super) fn raise(&self, concern: Concern) {
        self.change(|board, now| board.raise(concern, now));
    }

    /// See [`Board::clear`].
    pub(super) fn clear(&self, code: Code) {
        self.change(|board, now| board.clear(code, &Subject::Here, now));
    }

    /// See [`Board::set`].
    pub(super) fn set(&self, code: Code, text: Option<String>) {
        self.change(|board, now| board.set(code, text, now));
    }

    /// See [`Board::replace`].
    pub(super) fn replace(&self, codes: &[Code], concerns: Vec<Concern>) {
        self.change(|board, now| board.replace(codes, concerns, now));
    }

    /// See [`Board::happened`].
    pub(super) fn happened(&self, text: String) {
        self.change(|board, now| board.happened(text, now));
    }

    /// See [`Board::finish`].
    pub(super) fn finish(&self) {
        self.change(Board::finish);
    }

    /// What is the matter in this respect with this node.
    pub(super) fn here(&self, code: Code) -> Option<String> {
        self.0.borrow().here(code).map(str::to_owned)
    }

    /// The first thing that is the matter in one of these respects.
    pub(super) fn first(&self, codes: &[Code]) -> Option<String> {
        let board = self.0.borrow();
        codes.iter().find_map(|code| board.texts(*code).next().map(str::to_owned))
    }

    /// What is the matter in this respect with this Node.
    pub(super) fn about(&self, code: Code, node: &str) -> Option<String> {
        self.0.borrow().text(code, &Subject::Named(node.to_owned())).map(str::to_owned)
    }

    /// Whether pods on this node can be served.
    pub(super) fn readiness(&self) -> Readiness {
        self.0.borrow().readiness()
    }

    /// Reads the board.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Board) -> T) -> T {
        read(&self.0.borrow())
    }

    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    fn change(&self, change: impl FnOnce(&mut Board, Instant)) {
        let mut board = self.0.borrow_mut();
        change(&mut board, Instant::now());
        for Line { level, code, text } in board.lines() {
            let code = code.map(Code::as_str);
            match level {
                Level::Warn => warn!(code, "{text}"),
                Level::Info => info!(code, "{text}"),
            }
        }
    }
}

/// Tells what waits for its time, for good.
pub(super) async fn tick(concerns: Concerns) -> Infallible {
    loop {
        tokio::time::sleep(TICK).await;
        concerns.change(Board::tick);
    }
}

/// A concern for each Node, with all that is said of it.
pub(super) fn by_node<'a>(
    code: Code,
    said: impl Iterator<Item = (&'a str, String)>,
) -> impl Iterator<Item = Concern> {
    let mut texts = BTreeMap::<&str, Vec<String>>::new();
    for (node, text) in said {
        texts.entry(node).or_default().push(text);
    }
    texts.into_iter().map(move |(node, texts)| Concern::new(code, texts.join("; ")).about(node))
}
