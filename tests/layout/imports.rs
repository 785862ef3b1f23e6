//! Reads which file of `src` imports which: from `use` declarations and from paths in code, by `syn`. Code
//! below `#[cfg(test)]` is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// The files of `src` with their imports, and who calls what.
pub struct Sources {
    files: BTreeMap<String, Source>,
    /// The file of each module.
    modules: BTreeMap<Vec<String>, String>,
}

/// One file.
pub struct Source {
    /// The module, as in `["http", "ui", "login"]`; empty for `lib.rs`.
    module: Vec<String>,
    /// Every path that its code names, with `crate::`, `super::` and `self::` resolved.
    paths: BTreeSet<Vec<String>>,
    /// `pub use child::Name` of a parent module: name → path.
    reexports: BTreeMap<String, Vec<String>>,
    /// The types that it builds with braces, as in `Event { … }`.
    built: BTreeSet<String>,
}

impl Sources {
    /// Reads all files below `src`.
    pub fn read(root: &Path) -> Self {
        let src = root.join("src");
        let mut files = BTreeMap::new();
        for file in super::sources(&src) {
            let name = file
                .strip_prefix(&src)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let tree = syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap();
            let mut source = Source {
                module: module_of(&name),
                paths: BTreeSet::new(),
                reexports: BTreeMap::new(),
                built: BTreeSet::new(),
            };
            Reader(&mut source).visit_file(&tree);
            files.insert(name, source);
        }
        let modules = files
            .iter()
            .map(|(name, source): (&String, &Source)| (source.module.clone(), name.clone()))
            .collect();
        Self { files, modules }
    }

    /// Returns the names of the files, relative to `src`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Returns whether a file names a path with this end, such as `Event::new`.
    pub fn calls(&self, name: &str, end: &[&str]) -> bool {
        self.files[name].paths.iter().any(|path| {
            path.len() >= end.len() && path[path.len() - end.len()..].iter().eq(end.iter())
        })
    }

    /// Returns whether a file builds a type with braces, as in `Event { … }`.
    pub fn builds(&self, name: &str, type_name: &str) -> bool {
        self.files[name].built.contains(type_name)
    }

    /// Returns whether a file names a path that starts with a crate or module, such as `reqwest`.
    pub fn names_crate(&self, name: &str, first: &str) -> bool {
        self.files[name]
            .paths
            .iter()
            .any(|path| path.first().is_some_and(|segment| segment == first))
    }

    /// Returns the names of the files that each file imports.
    pub fn imports(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        self.names()
            .map(|name| (name, self.imports_of(name)))
            .collect()
    }

    fn imports_of(&self, name: &str) -> BTreeSet<&str> {
        let source = &self.files[name];
        let targets = source.paths.iter().filter_map(|path| {
            let path = path.strip_prefix(&["crate".to_owned()][..])?;
            self.file_of(path, 0)
        });
        targets.filter(|target| *target != name).collect()
    }

    /// Returns the file that defines a path: the longest module that it begins with. A name that a module
    /// re-exports from a child belongs to the child.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&str> {
        let name = (0..=path.len())
            .rev()
            .find_map(|length| self.modules.get(&path[..length]))?;
        let source = &self.files[name];
        let reexport = path
            .get(source.module.len())
            .and_then(|item| source.reexports.get(item));
        match reexport {
            Some(target) if depth < 8 && target.as_slice() != path => {
                let target = target.strip_prefix(&["crate".to_owned()][..])?;
                self.file_of(target, depth + 1)
            }
            _ => Some(name),
        }
    }

    /// Groups of files that import one another in a circle. A module's own file (`mod.rs`, or the file beside
    /// its folder) is not counted, because it declares its children and re-exports them.
    pub fn circles(&self) -> Vec<Vec<&str>> {
        let parents: BTreeSet<PathBuf> = self
            .names()
            .filter_map(|name| Path::new(name).parent().map(Path::to_owned))
            .collect();
        let is_parent = |name: &str| {
            name.ends_with("mod.rs")
                || name == "lib.rs"
                || parents.contains(&Path::new(name).with_extension(""))
        };
        let nodes: Vec<&str> = self.names().filter(|name| !is_parent(name)).collect();
        let imports = self.imports();
        let reach: BTreeMap<&str, BTreeSet<&str>> = nodes
            .iter()
            .map(|node| (*node, reachable(&imports, node, &is_parent)))
            .collect();
        let mut circles: BTreeSet<Vec<&str>> = BTreeSet::new();
        for node in &nodes {
            let circle: Vec<&str> = nodes
                .iter()
                .copied()
                .filter(|other| reach[node].contains(other) && reach[other].contains(node))
                .collect();
            if !circle.is_empty() {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }
}

fn reachable<'s>(
    imports: &BTreeMap<&'s str, BTreeSet<&'s str>>,
    from: &str,
    is_parent: &dyn Fn(&str) -> bool,
) -> BTreeSet<&'s str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = imports[from].iter().copied().collect();
    while let Some(name) = open.pop() {
        if !is_parent(name) && found.insert(name) {
            open.extend(&imports[name]);
        }
    }
    found
}

/// Returns the module path of a file: `http/ui/login.rs` → `["http", "ui", "login"]`.
fn module_of(name: &str) -> Vec<String> {
    let path = name.trim_end_matches(".rs");
    let path = path.trim_end_matches("mod").trim_end_matches('/');
    match path {
        "lib" => Vec::new(),
        _ => path.split('/').map(str::to_owned).collect(),
    }
}

struct Reader<'a>(&'a mut Source);

impl Reader<'_> {
    /// Resolves the first segment; a path without one of the keywords stays as it is written.
    fn add(&mut self, mut path: Vec<String>) -> Vec<String> {
        let mut base = self.0.module.clone();
        match path.first().map(String::as_str) {
            Some("self") => path.remove(0),
            Some("super") => {
                while path.first().is_some_and(|segment| segment == "super") {
                    path.remove(0);
                    base.pop();
                }
                String::new()
            }
            _ => {
                self.0.paths.insert(path.clone());
                return path;
            }
        };
        let resolved: Vec<String> = std::iter::once("crate".to_owned())
            .chain(base)
            .chain(path)
            .collect();
        self.0.paths.insert(resolved.clone());
        resolved
    }

    fn tree(&mut self, tree: &syn::UseTree, before: &[String], is_public: bool) {
        let with = |name: String| before.iter().cloned().chain([name]).collect::<Vec<_>>();
        match tree {
            syn::UseTree::Path(path) => {
                self.tree(&path.tree, &with(path.ident.to_string()), is_public)
            }
            syn::UseTree::Group(group) => {
                for item in &group.items {
                    self.tree(item, before, is_public);
                }
            }
            syn::UseTree::Name(name) => self.leaf(with(name.ident.to_string()), None, is_public),
            syn::UseTree::Rename(name) => self.leaf(
                with(name.ident.to_string()),
                Some(name.rename.to_string()),
                is_public,
            ),
            syn::UseTree::Glob(_) => {
                self.add(before.to_vec());
            }
        }
    }

    fn leaf(&mut self, mut path: Vec<String>, alias: Option<String>, is_public: bool) {
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = alias.or_else(|| path.last().cloned()).unwrap_or_default();
        let resolved = self.add(path);
        if is_public {
            let is_absolute = resolved.first().is_some_and(|first| first == "crate");
            let resolved = if is_absolute {
                resolved
            } else {
                // `pub use child::Name` names a module below this one.
                std::iter::once("crate".to_owned())
                    .chain(self.0.module.clone())
                    .chain(resolved)
                    .collect()
            };
            self.0.reexports.insert(name, resolved);
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .meta
                .require_list()
                .is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            let is_public = !matches!(item.vis, syn::Visibility::Inherited);
            self.tree(&item.tree, &[], is_public);
        }
    }

    fn visit_expr_struct(&mut self, item: &'ast syn::ExprStruct) {
        if let Some(last) = item.path.segments.last() {
            self.0.built.insert(last.ident.to_string());
        }
        visit::visit_expr_struct(self, item);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        self.add(segments.collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        // The arguments of a macro need not be expressions, so paths are taken from its tokens.
        let text = item.tokens.to_string().replace(" :: ", "::");
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        for path in words.filter(|word| word.contains("::")) {
            let segments = path.split("::").filter(|segment| !segment.is_empty());
            self.add(segments.map(str::to_owned).collect());
        }
        self.visit_path(&item.path);
    }
}
