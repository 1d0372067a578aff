//! Reading a page: its sections, tables and the names in backticks.

use std::fs;
use std::path::{Path, PathBuf};

/// A Markdown file of the repository.
pub(super) struct Page {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// One row of a table.
pub(super) struct Row(pub(super) Vec<String>);

/// The repository.
pub(super) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every page that people read: README files, the manual, and what the forge shows.
pub(super) fn all() -> Vec<Page> {
    let beside = ["README.md", "manifests/README.md", "benches/README.md", "integration/README.md"];
    let mut paths: Vec<PathBuf> =
        beside.iter().chain(&[".github/SECURITY.md"]).map(|path| root().join(path)).collect();
    let manual = fs::read_dir(root().join("src/docs")).unwrap();
    paths.extend(manual.map(|entry| entry.unwrap().path()).filter(|path| is_markdown(path)));
    assert!(paths.len() > 9, "{paths:?}");
    paths.iter().map(|path| Page::open(path)).collect()
}

/// Names in backticks, in their order.
pub(super) fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

impl Page {
    pub(super) fn open(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path: path.to_owned(), text }
    }

    /// A page of the manual by its name.
    pub(super) fn manual(name: &str) -> Self {
        Self::open(&root().join("src/docs").join(name))
    }

    /// The lines outside of code blocks.
    pub(super) fn prose(&self) -> impl Iterator<Item = &str> {
        self.lines().filter(|(_, in_block)| !in_block).map(|(line, _)| line)
    }

    /// What people are told to type: lines of code blocks, and what stands in backticks.
    pub(super) fn code(&self) -> Vec<&str> {
        let of_line = |(line, in_block)| if in_block { vec![line] } else { code_spans(line) };
        self.lines().flat_map(of_line).collect()
    }

    /// Each line but the fences, and whether it is inside a code block.
    fn lines(&self) -> impl Iterator<Item = (&str, bool)> {
        let mut inside = false;
        self.text.lines().filter_map(move |line| {
            let fence = line.starts_with("```");
            inside ^= fence;
            (!fence).then_some((line, inside))
        })
    }

    /// Titles of its sections, with their level.
    pub(super) fn headings(&self) -> Vec<(usize, &str)> {
        self.prose().filter_map(heading).collect()
    }

    /// Rows of the tables under the heading `title`, without their heads, up to the next heading of any level.
    pub(super) fn rows(&self, title: &str) -> Vec<Row> {
        let lines: Vec<&str> = self
            .prose()
            .skip_while(|line| heading(line).is_none_or(|(_, name)| name != title))
            .skip(1)
            .take_while(|line| heading(line).is_none())
            .collect();
        let is_head = |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("|---"));
        let rows: Vec<Row> = lines
            .iter()
            .enumerate()
            .filter(|(at, line)| line.starts_with("| ") && !is_head(*at))
            .map(|(_, line)| Row::of(line))
            .collect();
        assert!(!rows.is_empty(), "{} has no table under {title:?}", self.path.display());
        rows
    }
}

impl Row {
    fn of(line: &str) -> Self {
        let cells = line
            .trim()
            .strip_prefix('|')
            .unwrap_or_default()
            .trim_end_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned());
        Self(cells.collect())
    }

    /// The name in backticks that its first cell begins with.
    pub(super) fn name(&self) -> &str {
        code_spans(&self.0[0]).first().copied().unwrap_or_else(|| panic!("no name in {:?}", self.0))
    }
}

/// Level and title of a heading.
fn heading(line: &str) -> Option<(usize, &str)> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    (level > 0).then(|| line[level..].strip_prefix(' ').map(|title| (level, title))).flatten()
}
