//! Files of an image, and the layer that holds them. The same files give the same bytes, whoever packs them and when.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    File { bytes: Vec<u8>, mode: u32 },
    Link(String),
    Folder,
}

/// Files by their absolute paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Entry>);

/// A packed layer.
pub struct Layer {
    /// What a registry stores: a gzip file.
    pub packed: Vec<u8>,
    /// The tar inside of it, by whose hash an image's configuration names the layer.
    pub tar: Vec<u8>,
}

impl Tree {
    /// A program: everybody may read it and run it.
    pub fn program(&mut self, path: &str, bytes: Vec<u8>) {
        self.0.insert(path.to_owned(), Entry::File { bytes, mode: 0o755 });
    }

    /// A file that everybody may read.
    pub fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.0.insert(path.to_owned(), Entry::File { bytes: bytes.into(), mode: 0o644 });
    }

    /// A symbolic link to `target`.
    pub fn link(&mut self, path: &str, target: &str) {
        self.0.insert(path.to_owned(), Entry::Link(target.to_owned()));
    }

    /// An empty folder. Folders above files need not be named.
    pub fn folder(&mut self, path: &str) {
        self.0.insert(path.to_owned(), Entry::Folder);
    }

    /// Whether something lies there.
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// Everything as a layer; time and errors are those of [`Tree::tar`].
    ///
    /// # Errors
    /// When it cannot be packed.
    pub fn pack(&self, epoch: u64) -> Result<Layer> {
        let tar = self.tar(epoch)?;
        // Neither a time nor a file name, and "unknown" for the system.
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(&tar)?;
        Ok(Layer { packed: gzip.finish()?, tar })
    }

    /// Everything as a tar, owned by root and of the time `epoch` (seconds since 1970).
    ///
    /// # Errors
    /// When a path is not absolute.
    pub fn tar(&self, epoch: u64) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in self.with_parents()? {
            let mut header = Header::new_gnu();
            header.set_mtime(epoch);
            header.set_uid(0);
            header.set_gid(0);
            let inside = path.trim_start_matches('/');
            match entry {
                Entry::File { bytes, mode } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, inside, bytes.as_slice())
                }
                Entry::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, inside, target)
                }
                Entry::Folder => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(0o755);
                    header.set_size(0);
                    tar.append_data(&mut header, format!("{inside}/"), std::io::empty())
                }
            }
            .with_context(|| format!("pack {path}"))?;
        }
        Ok(tar.into_inner()?)
    }

    /// Every entry with the folders above it, each before what it holds.
    fn with_parents(&self) -> Result<BTreeMap<&str, &Entry>> {
        let mut all: BTreeMap<&str, &Entry> = BTreeMap::new();
        let mut folders = BTreeSet::new();
        for (path, entry) in &self.0 {
            ensure!(path.starts_with('/') && !path.ends_with('/'), "{path:?} is no absolute path of a file");
            all.insert(path, entry);
            folders
                .extend(path.match_indices('/').map(|(at, _)| &path[..at]).filter(|path| !path.is_empty()));
        }
        for folder in folders {
            all.entry(folder).or_insert(&Entry::Folder);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_making_does_not_matter_and_parents_come_first() {
        let mut one = Tree::default();
        one.program("/opt/bin/flanneld", b"program".to_vec());
        one.link("/bin/cp", "/opt/bin/flanneld");
        let mut two = Tree::default();
        two.link("/bin/cp", "/opt/bin/flanneld");
        two.program("/opt/bin/flanneld", b"program".to_vec());
        let (one, two) = (one.pack(1_700_000_000).unwrap(), two.pack(1_700_000_000).unwrap());
        assert_eq!(one.packed, two.packed);
        assert_eq!(one.packed[4..8], [0; 4], "gzip holds a time");

        let mut archive = tar::Archive::new(one.tar.as_slice());
        let paths = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 1_700_000_000);
            entry.path().unwrap().display().to_string()
        });
        assert_eq!(paths.collect::<Vec<_>>(), ["bin/", "bin/cp", "opt/", "opt/bin/", "opt/bin/flanneld"]);
    }

    #[test]
    fn relative_paths_are_refused() {
        let mut tree = Tree::default();
        tree.file("etc/passwd", "");
        assert!(tree.pack(0).is_err());
    }
}
