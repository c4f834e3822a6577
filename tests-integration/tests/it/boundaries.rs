//! The borders the style of this workspace draws: who may import whom, what lies where.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use causeway_tests_integration::programs::repository;
use serde_json::Value;

/// For each of our packages, those it may import (development dependencies included).
const ARROWS: [(&str, &[&str]); 7] = [
    ("causeway-proto", &[]),
    ("causeway-rpc", &["causeway-proto"]),
    ("causeway-client", &["causeway-proto"]),
    ("causeway-control", &["causeway-proto", "causeway-rpc"]),
    ("causeway-node", &["causeway-proto", "causeway-rpc", "causeway-control", "causeway-client"]),
    ("causeway-ops", &["causeway-proto", "causeway-rpc", "causeway-client"]),
    (
        "causeway-tests-integration",
        &["causeway-proto", "causeway-rpc", "causeway-client", "causeway-control", "causeway-node", "causeway-ops"],
    ),
];

/// What may stand at the root of the repository.
const TOP_LEVEL: [&str; 21] = [
    ".ci",
    ".gitignore",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "clippy.toml",
    "control",
    "deny.toml",
    "docs",
    "node",
    "ops",
    "proto",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "terraform",
    "tests-integration",
    ".github",
    ".gitattributes",
];

fn metadata() -> Value {
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output().expect("rustc runs");
    let host = String::from_utf8(host.stdout).expect("UTF-8");
    // Only what this machine builds has been downloaded.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host.trim()])
        .current_dir(repository())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().unwrap_or_else(|| panic!("`{key}` is a list")).iter()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("`{key}` is text"))
}

#[test]
fn packages_import_only_along_the_arrows() {
    let metadata = metadata();
    let members: BTreeSet<_> = items(&metadata, "workspace_members").map(|id| id.as_str().unwrap()).collect();
    let allowed = BTreeMap::from(ARROWS);
    let mut seen = BTreeSet::new();
    for package in items(&metadata, "packages").filter(|package| members.contains(text(package, "id"))) {
        let name = text(package, "name");
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} is not among the packages of the architecture"));
        for dependency in items(package, "dependencies").map(|dependency| text(dependency, "name")) {
            let ours = dependency.starts_with("causeway-");
            assert!(!ours || may.contains(&dependency), "{name} must not import {dependency}");
        }
        seen.insert(name.to_owned());
    }
    assert_eq!(seen.len(), ARROWS.len(), "packages found: {seen:?}");
}

#[test]
fn wire_formats_need_no_async_runtime() {
    let metadata = metadata();
    let names: BTreeMap<_, _> =
        items(&metadata, "packages").map(|package| (text(package, "id"), text(package, "name"))).collect();
    let nodes: BTreeMap<_, _> = items(&metadata["resolve"], "nodes").map(|node| (text(node, "id"), node)).collect();
    let proto = names.iter().find(|(_, name)| **name == "causeway-proto").expect("causeway-proto is a package").0;
    let mut tree = BTreeSet::new();
    let mut todo = vec![*proto];
    while let Some(id) = todo.pop() {
        if !tree.insert(names[id]) {
            continue;
        }
        let normal = items(nodes[id], "deps").filter(|dep| items(dep, "dep_kinds").any(|kind| kind["kind"].is_null()));
        todo.extend(normal.map(|dep| text(dep, "pkg")));
    }
    assert!(tree.contains("bytes"), "the walk found the tree: {tree:?}");
    for banned in ["tokio", "mio", "hyper", "async-std", "smol", "tonic", "h2"] {
        assert!(!tree.contains(banned), "causeway-proto must not need {banned}");
    }
}

#[test]
fn the_root_holds_only_what_belongs_there() {
    let output = Command::new("git").args(["ls-files"]).current_dir(repository()).output();
    let Ok(output) = output else {
        println!("skipped: git is not installed");
        return;
    };
    if !output.status.success() {
        println!("skipped: this is no git checkout");
        return;
    }
    let files = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let found: BTreeSet<_> = files.lines().filter_map(|file| file.split('/').next()).collect();
    let unknown: Vec<_> = found.iter().filter(|name| !TOP_LEVEL.contains(name)).collect();
    assert!(unknown.is_empty(), "not in the layout: {unknown:?}");
}

#[test]
fn every_protocol_with_a_front_door_has_its_four_places() {
    let root = repository();
    let doors = std::fs::read_dir(root.join("node/src/ingress")).expect("node/src/ingress");
    // A folder without mod.rs only holds parts of the file beside it.
    let doors = doors.map(|entry| entry.expect("entry")).filter(|entry| entry.path().join("mod.rs").is_file());
    let mut checked = 0;
    for door in doors
        .map(|entry| entry.file_name().into_string().expect("UTF-8"))
        .filter(|door| !["debug", "http"].contains(&door.as_str()))
    {
        let places =
            [format!("proto/src/{door}"), format!("docs/protocols/{door}.md"), format!("tests-integration/tests/it/{door}.rs")];
        for place in places {
            assert!(root.join(&place).exists(), "protocol {door} lacks {place}");
        }
        checked += 1;
    }
    assert!(checked > 0, "no protocol was found");
}

#[test]
fn markdown_links_of_the_repository_lead_somewhere() {
    let root = repository();
    let mut documents = vec![root.join("README.md"), root.join("CONTRIBUTING.md"), root.join("terraform/README.md")];
    for folder in ["docs", "docs/protocols", "docs/operations", "docs/decisions"] {
        let Ok(entries) = std::fs::read_dir(root.join(folder)) else { continue };
        documents
            .extend(entries.map(|entry| entry.expect("entry").path()).filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap_or_else(|error| panic!("{}: {error}", document.display()));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().expect("split gives one part");
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let folder = document.parent().unwrap_or(Path::new("."));
            assert!(folder.join(path).exists(), "{} links to {target}, which does not exist", document.display());
        }
    }
}

/// The fields of the object type of a Terraform variable, line by line.
fn fields_of(module: &str, variable: &str) -> Vec<String> {
    let file = repository().join("terraform").join(module).join("variables.tf");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let from_variable = text.lines().skip_while(|line| *line != format!("variable \"{variable}\" {{"));
    let from_type = from_variable.skip_while(|line| !line.starts_with("  type = ")).skip(1);
    let fields: Vec<String> = from_type.take_while(|line| !line.starts_with("  })")).map(|line| line.trim().to_owned()).collect();
    assert!(!fields.is_empty(), "{}: variable {variable} has no object type", file.display());
    fields
}

#[test]
fn terraform_modules_agree_on_the_types_they_share() {
    // HCL has no names for types, so each module writes them out.
    let fleet = fields_of("modules/topology", "fleet");
    for module in ["modules/plan", "modules/region/local", "fleets/local"] {
        assert_eq!(fields_of(module, "fleet"), fleet, "{module}");
    }
    let region = fields_of("modules/topology", "regions");
    assert_eq!(fields_of("modules/plan", "regions"), region);
    assert_eq!(fields_of("modules/region/local", "region"), region);
    assert_eq!(fields_of("modules/operate", "machines"), fields_of("modules/plan", "machines"));
}
