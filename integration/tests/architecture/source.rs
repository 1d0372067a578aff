//! Reads a crate as the compiler does, module by module, and says which names each of them uses.
//!
//! Test code is left out where it is declared: `#[cfg(test)] mod tests;` is never followed. Paths are followed to their
//! beginning, whatever they begin with: `crate::`, `super::`, `self::`, or the crate's own name. In the arguments of a
//! macro, which are only tokens, every `a::b` counts as a path. What a macro of the crate makes of them is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Meta, UseTree};

/// A module of a crate, without its tests.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its path in the crate: `["adapter", "netlink"]`. The root has none.
    pub(crate) path: Vec<String>,
    pub(crate) file: PathBuf,
    /// The paths inside the crate that it names, from the root on.
    pub(crate) inside: BTreeSet<Vec<String>>,
    /// The paths that begin with another crate.
    pub(crate) outside: BTreeSet<Vec<String>>,
    /// Whether there is an `unsafe` block, function, implementation or trait.
    pub(crate) has_unsafe: bool,
}

/// A crate to read.
pub(crate) struct Crate<'a> {
    /// What it calls itself where it does not say `crate`.
    pub(crate) name: &'a str,
    /// Other crates that it may name, with `_`.
    pub(crate) others: &'a [String],
}

impl Crate<'_> {
    /// All modules below the file `root`.
    pub(crate) fn read(&self, root: &Path) -> Vec<Module> {
        let mut found = Vec::new();
        let folder = root.parent().unwrap_or_else(|| panic!("{} is in no folder", root.display()));
        self.file(root, folder, &[], &mut found);
        found
    }

    /// The modules of one text, for the tests of these tests.
    pub(crate) fn text(&self, path: &[&str], text: &str) -> Vec<Module> {
        let mut found = Vec::new();
        let path: Vec<String> = path.iter().map(|&name| name.to_owned()).collect();
        let items = parse(text, Path::new("a text")).items;
        self.module(&items, Path::new("a text"), None, &path, &mut found);
        found
    }

    fn file(&self, file: &Path, folder: &Path, path: &[String], found: &mut Vec<Module>) {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.module(&parse(&text, file).items, file, Some(folder), path, found);
    }

    /// `folder` is where the modules that this one declares have their files.
    fn module<'i>(
        &'i self,
        items: &'i [Item],
        file: &Path,
        folder: Option<&Path>,
        path: &[String],
        found: &mut Vec<Module>,
    ) {
        let mut reader = Reader {
            local: BTreeSet::new(),
            aliases: BTreeMap::new(),
            named: Vec::new(),
            below: Vec::new(),
            has_unsafe: false,
        };
        items.iter().for_each(|item| reader.visit_item(item));
        let Reader { local, aliases, named, below, has_unsafe, .. } = reader;
        let (mut inside, mut outside) = (BTreeSet::new(), BTreeSet::new());
        for (mut name, mut imported) in named {
            // `use std::thread;` makes `thread::spawn` a path of the standard library.
            if let Some(whole) = name.first().and_then(|first| aliases.get(first)).filter(|_| !imported) {
                name.splice(..1, whole.iter().cloned());
                imported = true;
            }
            match self.whence(path, &local, &name, imported) {
                Some(Whence::Inside(name)) => _ = inside.insert(name),
                Some(Whence::Outside) => _ = outside.insert(name),
                None => {}
            }
        }
        found.push(Module { path: path.to_owned(), file: file.to_owned(), inside, outside, has_unsafe });
        for module in below {
            let name = module.ident.to_string();
            let path: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
            match (&module.content, folder) {
                (Some((_, items)), _) => {
                    self.module(
                        items,
                        file,
                        folder.map(|folder| folder.join(&name)).as_deref(),
                        &path,
                        found,
                    );
                }
                (None, Some(folder)) => {
                    let (file, inner) = place(module, folder, &name);
                    self.file(&file, &inner, &path, found);
                }
                (None, None) => {}
            }
        }
    }

    /// Where a path leads. `imported` says that it stands in a `use`, which begins at the root or with a crate.
    fn whence(
        &self,
        module: &[String],
        local: &BTreeSet<String>,
        name: &[String],
        imported: bool,
    ) -> Option<Whence> {
        let (first, rest) = name.split_first()?;
        let from = |base: &[String], rest: &[String]| Some(Whence::Inside([base, rest].concat()));
        match first.as_str() {
            "crate" => from(&[], rest),
            "self" => from(module, rest),
            "super" => {
                let ups = name.iter().take_while(|name| *name == "super").count();
                from(&module[..module.len().saturating_sub(ups)], &name[ups..])
            }
            first if first == self.name => from(&[], rest),
            first if local.contains(first) && !imported => None,
            "std" | "core" | "alloc" => Some(Whence::Outside),
            first => self.others.iter().any(|other| other == first).then_some(Whence::Outside),
        }
    }
}

enum Whence {
    Inside(Vec<String>),
    Outside,
}

/// The file of a module that is declared without a body, and the folder of those that it declares itself.
fn place(module: &ItemMod, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let beside = folder.join(format!("{name}.rs"));
    let named = module.attrs.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    });
    match named {
        Some(named) => {
            let file = folder.join(named);
            let inner = file.with_extension("");
            (file, inner)
        }
        None if beside.exists() => (beside, folder.join(name)),
        None => (folder.join(name).join("mod.rs"), folder.join(name)),
    }
}

fn parse(text: &str, file: &Path) -> syn::File {
    syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

struct Reader<'a> {
    /// Modules declared here, whose names may be those of other crates.
    local: BTreeSet<String>,
    /// Names that are imported here, and the paths that they stand for.
    aliases: BTreeMap<String, Vec<String>>,
    /// Paths, and whether they were in a `use`.
    named: Vec<(Vec<String>, bool)>,
    below: Vec<&'a ItemMod>,
    has_unsafe: bool,
}

impl<'a> Visit<'a> for Reader<'a> {
    fn visit_item(&mut self, item: &'a Item) {
        if !attributes(item).iter().any(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        if !function.attrs.iter().any(is_test) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_field(&mut self, field: &'a syn::Field) {
        if !field.attrs.iter().any(is_test) {
            visit::visit_field(self, field);
        }
    }

    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        self.local.insert(module.ident.to_string());
        self.below.push(module);
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        let mut paths = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut paths);
        for (path, bound) in paths {
            self.aliases.extend(bound.map(|bound| (bound, path.clone())));
            self.named.push((path, true));
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        // One name alone is no path to another module.
        if path.segments.len() > 1 {
            self.named.push((path.segments.iter().map(|segment| segment.ident.to_string()).collect(), false));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        self.visit_path(&call.path);
        tokens(&call.tokens, &mut self.named);
    }

    fn visit_attribute(&mut self, attribute: &'a Attribute) {
        self.visit_path(attribute.path());
        if let Meta::List(list) = &attribute.meta {
            tokens(&list.tokens, &mut self.named);
        }
    }

    fn visit_expr_unsafe(&mut self, block: &'a syn::ExprUnsafe) {
        self.has_unsafe = true;
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &'a syn::Signature) {
        self.has_unsafe |= matches!(signature.safety, syn::Safety::Unsafe(_));
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'a syn::ItemImpl) {
        self.has_unsafe |= item.unsafety.is_some();
        visit::visit_item_impl(self, item);
    }

    fn visit_item_trait(&mut self, item: &'a syn::ItemTrait) {
        self.has_unsafe |= item.unsafety.is_some();
        visit::visit_item_trait(self, item);
    }
}

/// Each path of a `use`, and the name that it gets here.
fn flatten(tree: &UseTree, before: &mut Vec<String>, paths: &mut Vec<(Vec<String>, Option<String>)>) {
    let with = |before: &[String], last: String| before.iter().cloned().chain([last]).collect::<Vec<_>>();
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, paths);
            before.pop();
        }
        UseTree::Name(name) if name.ident == "self" => paths.push((before.clone(), before.last().cloned())),
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            paths.push((with(before, name.clone()), Some(name)));
        }
        UseTree::Rename(name) => {
            paths.push((with(before, name.ident.to_string()), Some(name.rename.to_string())));
        }
        UseTree::Glob(_) => paths.push((before.clone(), None)),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, paths)),
    }
}

/// Every `a::b` in what is only tokens.
fn tokens(stream: &TokenStream, named: &mut Vec<(Vec<String>, bool)>) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    let mut end = |path: &mut Vec<String>| {
        let path = std::mem::take(path);
        if path.len() > 1 {
            named.push((path, false));
        }
    };
    let mut groups = Vec::new();
    for token in stream.clone() {
        match token {
            TokenTree::Ident(ident) => {
                if colons != 2 {
                    end(&mut path);
                }
                path.push(ident.to_string());
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                end(&mut path);
                groups.push(group.stream());
                colons = 0;
            }
            _ => {
                end(&mut path);
                colons = 0;
            }
        }
    }
    end(&mut path);
    for group in groups {
        tokens(&group, named);
    }
}

fn is_test(attribute: &Attribute) -> bool {
    match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        Meta::NameValue(_) => false,
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
