//! Every link leads somewhere, on a forge that shows the file and in the generated documentation.

use std::collections::HashMap;
use std::path::Path;

use super::page::{self, Page};

/// What the generated documentation makes of labels.
const MODULE: &str = include_str!("../../docs.rs");

#[test]
fn links_lead_to_files_and_headings() {
    let mut checked = 0;
    let mut broken = Vec::new();
    for page in page::all() {
        for target in targets(&page) {
            checked += 1;
            if let Err(why) = leads(&page, &target) {
                broken.push(format!("{}: {target}: {why}", page.path.display()));
            }
        }
    }
    assert!(checked > 20, "only {checked} links were found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A path to a file is none inside the generated documentation, so the manual links by labels that `docs.rs` knows.
#[test]
fn the_manual_links_by_labels_that_rustdoc_knows() {
    for page in page::all().into_iter().filter(|page| page.path.parent().unwrap().ends_with("src/docs")) {
        for (target, from) in inline(&page) {
            assert!(
                target.starts_with('#') || target.starts_with("https://"),
                "{}: write [text][label] instead of {from}",
                page.path.display()
            );
        }
        for label in labels(&page).keys() {
            assert!(
                MODULE.contains(&format!("\"[{label}]: ")),
                "{}: docs.rs does not say what [{label}] is in the generated documentation",
                page.path.display()
            );
        }
    }
}

#[test]
fn labels_are_defined_and_used() {
    for page in page::all() {
        let labels = labels(&page);
        let lines: Vec<&str> = page.prose().filter(|line| definition(line).is_none()).collect();
        let prose = lines.join(" ");
        for label in labels.keys() {
            let used = prose.contains(&format!("[{label}][]")) || prose.contains(&format!("][{label}]"));
            assert!(used, "{}: nothing uses the label [{label}]", page.path.display());
        }
        for label in prose.split("][").skip(1).filter_map(|rest| rest.split(']').next()) {
            assert!(
                label.is_empty() || labels.contains_key(label),
                "{}: [{label}] is not defined",
                page.path.display()
            );
        }
        for (at, _) in prose.match_indices("][]") {
            let label = prose[..at].rsplit('[').next().unwrap();
            assert!(labels.contains_key(label), "{}: [{label}] is not defined", page.path.display());
        }
    }
}

#[test]
fn headings_become_anchors() {
    assert_eq!(anchor("Why a node is refused"), "why-a-node-is-refused");
    assert_eq!(anchor("net-conf.json"), "net-confjson");
    assert_eq!(anchor("Table `inet loden`"), "table-inet-loden");
    assert_eq!(anchor("0.1.0, not released yet"), "010-not-released-yet");
}

/// Where a page's links lead, those of its labels included.
fn targets(page: &Page) -> Vec<String> {
    let inline = inline(page).into_iter().map(|(target, _)| target);
    inline.chain(labels(page).into_values()).filter(|target| !target.starts_with("https://")).collect()
}

/// Targets of `[text](target)`, and the link as it is written.
fn inline(page: &Page) -> Vec<(String, String)> {
    let lines = page.prose().flat_map(|line| line.split("](").skip(1));
    lines.filter_map(|rest| rest.split(')').next()).map(|to| (to.to_owned(), format!("]({to})"))).collect()
}

/// Labels and where they lead.
fn labels(page: &Page) -> HashMap<String, String> {
    page.prose().filter_map(definition).collect()
}

/// `[label]: target`.
fn definition(line: &str) -> Option<(String, String)> {
    let (label, target) = line.strip_prefix('[')?.split_once("]: ")?;
    Some((label.to_owned(), target.to_owned()))
}

fn leads(page: &Page, target: &str) -> Result<(), String> {
    let (file, fragment) = target.split_once('#').map_or((target, None), |(file, to)| (file, Some(to)));
    let path = if file.is_empty() { page.path.clone() } else { directory(page).join(file) };
    if !path.exists() {
        return Err("there is no such file".to_owned());
    }
    let Some(fragment) = fragment else { return Ok(()) };
    let found = Page::open(&path).headings().iter().any(|(_, title)| anchor(title) == fragment);
    if found { Ok(()) } else { Err("there is no such heading".to_owned()) }
}

fn directory(page: &Page) -> &Path {
    page.path.parent().unwrap()
}

/// The anchor of a heading, as forges and rustdoc make it.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}
