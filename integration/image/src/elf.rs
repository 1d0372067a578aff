//! What a program needs in order to start: its loader and its libraries.

use anyhow::{Context, Result};
use object::Endianness;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};

/// What the file names. A static program names nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Absolute path of the loader; libraries name none.
    pub loader: Option<String>,
    /// Names of libraries, as `libc.so.6`.
    pub libraries: Vec<String>,
}

/// Reads them from a 64-bit ELF file; `None` for any other file.
///
/// # Errors
/// When the file claims to be ELF and is broken.
pub fn needs(file: &[u8]) -> Result<Option<Needs>> {
    if !file.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    let mut needs = Needs::default();
    for segment in header.program_headers(endian, file)? {
        if let Some(path) = segment.interpreter(endian, file)? {
            needs.loader = Some(text(path)?);
        }
    }
    let sections = header.sections(endian, file)?;
    if let Some((entries, link)) = sections.dynamic(endian, file)? {
        let strings = sections.strings(endian, file, link)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED) {
            let at = entry.val32(endian).context("a library's name lies outside of the file")?;
            let name = strings.get(at).ok().context("a library's name lies outside of the strings")?;
            needs.libraries.push(text(name)?);
        }
    }
    Ok(Some(needs))
}

fn text(bytes: &[u8]) -> Result<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    String::from_utf8(bytes.to_vec()).context("a name in the file is no text")
}
