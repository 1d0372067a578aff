//! The bill of materials: every crate in our programs and every Debian package in the image, as SPDX 2.3.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::about::About;
use crate::platform::Platform;
use crate::run::output;
use crate::userland::Package;

/// A crate that is linked into one of our programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as it says itself, in SPDX's words; empty where it does not.
    pub licence: String,
}

/// The crates of the package `loden` in the workspace `source`, for one machine, as Cargo.lock pins them.
///
/// # Errors
/// When cargo cannot tell.
pub fn crates(cargo: &Path, source: &Path, platform: Platform) -> Result<BTreeSet<Crate>> {
    let text = output(
        Command::new(cargo)
            .args(["tree", "--locked", "--package", "loden", "--edges", "normal,no-proc-macro"])
            .args(["--prefix", "none", "--format", "{p}\t{l}", "--target", platform.rust()])
            .current_dir(source),
    )?;
    // A line ends with (*) where cargo has printed what is below it before.
    text.lines().filter(|line| !line.is_empty()).map(|line| parse(line).context(line.to_owned())).collect()
}

/// `name v1.2.3 (/its/folder)<tab>licence (*)`; the folder only for our own.
fn parse(line: &str) -> Option<Crate> {
    let (package, licence) = line.split_once('\t')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let licence = licence.trim_end_matches("(*)").trim();
    // An older way of writing "or", which SPDX does not know.
    let licence = licence.replace('/', " OR ");
    Some(Crate { name: name.to_owned(), version: version.to_owned(), licence })
}

/// The document about one machine's image. `distribution` is what [`crate::debian::distribution`] says.
///
/// # Errors
/// When the time is none.
pub fn document(
    about: &About,
    platform: Platform,
    crates: &BTreeSet<Crate>,
    packages: &[Package],
    distribution: &(String, String),
) -> Result<Vec<u8>> {
    let name = format!("{}-{}-{}", about.title(), about.version, platform.name());
    let mut parts = vec![json!({
        "SPDXID": "SPDXRef-image",
        "name": about.title(),
        "versionInfo": about.version,
        "primaryPackagePurpose": "CONTAINER",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "Apache-2.0",
        "copyrightText": "NOASSERTION",
    })];
    parts.extend(crates.iter().map(|part| {
        let purl = format!("pkg:cargo/{}@{}", part.name, part.version);
        let licence = if part.licence.is_empty() { "NOASSERTION" } else { &part.licence };
        package(&format!("crate-{}-{}", part.name, part.version), &part.name, &part.version, licence, &purl)
    }));
    let (vendor, release) = distribution;
    parts.extend(packages.iter().map(|part| {
        let (name, version) = (&part.name, &part.version);
        let purl = format!(
            "pkg:deb/{vendor}/{name}@{}?arch={}&distro={release}",
            version.replace('+', "%2B"),
            platform.name()
        );
        let mut value = package(&format!("deb-{name}"), name, version, "NOASSERTION", &purl);
        if !part.sha256.is_empty() {
            value["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": part.sha256 }]);
        }
        value
    }));
    let contains = parts.iter().skip(1).map(|part| {
        json!({
            "spdxElementId": "SPDXRef-image",
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": part["SPDXID"],
        })
    });
    let describes = json!({
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-image",
    });
    let relationships: Vec<Value> = std::iter::once(describes).chain(contains).collect();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("https://spdx.org/spdxdocs/{name}-{}", about.commit),
        "creationInfo": {
            "created": about.created()?,
            "creators": [format!("Tool: {}-{}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))],
        },
        "packages": parts,
        "relationships": relationships,
    });
    Ok(serde_json::to_vec_pretty(&document)?)
}

fn package(id: &str, name: &str, version: &str, licence: &str, purl: &str) -> Value {
    // An identifier has letters, digits, points and hyphens.
    let id: String =
        id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    json!({
        "SPDXID": format!("SPDXRef-{id}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": licence,
        "copyrightText": "NOASSERTION",
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cargo() {
        let read = |line| parse(line).map(|found| (found.name, found.version, found.licence));
        let found = |name: &str, version: &str, licence: &str| {
            Some((name.to_owned(), version.to_owned(), licence.to_owned()))
        };
        assert_eq!(
            read("anyhow v1.0.104\tMIT OR Apache-2.0"),
            found("anyhow", "1.0.104", "MIT OR Apache-2.0")
        );
        assert_eq!(read("loden v0.1.0 (/somewhere)\tApache-2.0 (*)"), found("loden", "0.1.0", "Apache-2.0"));
        assert_eq!(read("old v1.0.0\tMIT/Apache-2.0"), found("old", "1.0.0", "MIT OR Apache-2.0"));
        assert_eq!(read("none v1.0.0\t"), found("none", "1.0.0", ""));
        assert_eq!(read("nonsense"), None);
    }
}
