//! Sets and maps, and their elements.

use std::time::Duration;

use super::{Field, Type, Verdict};

/// A set, or a map when it says something about its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name in the table.
    pub name: String,
    /// For people.
    pub comment: Option<&'static str>,
    /// What its keys are made of.
    pub key: SetKey,
    /// What it says about a key; `None` for one that only has keys.
    pub to: Option<To>,
    /// Elements may be ranges. No two of them overlap.
    pub interval: bool,
    /// Nothing comes or goes once a rule uses it.
    pub constant: bool,
    /// Rules put elements into it.
    pub dynamic: bool,
    /// Elements may have a time after which they go.
    pub timeouts: bool,
    /// That of elements which have none of their own, to the millisecond.
    pub timeout: Option<Duration>,
    /// At most so many elements.
    pub size: Option<u32>,
    /// What is in it from the beginning, sorted.
    pub elements: Vec<Element>,
}

/// What the keys of a set are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetKey {
    /// Values of these types, behind one another.
    Types(Vec<Type>),
    /// What these fields have: for such as are known by their place only. Addresses of the IP header and raw fields.
    Fields(Vec<Field>),
}

impl SetKey {
    /// The types of its parts.
    pub fn types(&self) -> Vec<Type> {
        match self {
            Self::Types(types) => types.clone(),
            Self::Fields(fields) => fields.iter().map(|field| field.data_type()).collect(),
        }
    }
}

/// What a map says about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// What to do.
    Verdict,
    /// Values of these types, behind one another.
    Types(Vec<Type>),
}

impl Set {
    /// A set of keys of these types.
    pub fn of(name: impl Into<String>, types: impl IntoIterator<Item = Type>) -> Self {
        Self::new(name, SetKey::Types(types.into_iter().collect()))
    }

    /// A set of what these fields have.
    pub fn of_fields(name: impl Into<String>, fields: impl IntoIterator<Item = Field>) -> Self {
        Self::new(name, SetKey::Fields(fields.into_iter().collect()))
    }

    /// A map from keys of these types to what is to be done.
    pub fn verdicts(name: impl Into<String>, types: impl IntoIterator<Item = Type>) -> Self {
        Self { to: Some(To::Verdict), ..Self::of(name, types) }
    }

    fn new(name: impl Into<String>, key: SetKey) -> Self {
        Self {
            name: name.into(),
            comment: None,
            key,
            to: None,
            interval: false,
            constant: false,
            dynamic: false,
            timeouts: false,
            timeout: None,
            size: None,
            elements: Vec::new(),
        }
    }

    /// The same with these elements.
    #[must_use]
    pub fn with(self, elements: impl IntoIterator<Item = Element>) -> Self {
        let mut elements: Vec<_> = elements.into_iter().collect();
        elements.sort();
        Self { elements, ..self }
    }
}

/// An element of a set or a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Its key in the kernel's form, see [`concatenated`]; of a range the first.
    pub key: Vec<u8>,
    /// The last of a range.
    pub last: Option<Vec<u8>>,
    /// How long it stays.
    pub timeout: Option<Duration>,
    /// What a map says about it.
    pub to: Option<super::Data>,
}

impl Element {
    /// A key alone.
    pub const fn new(key: Vec<u8>) -> Self {
        Self { key, last: None, timeout: None, to: None }
    }

    /// All keys from the first to the last.
    pub fn range(first: Vec<u8>, last: Vec<u8>) -> Self {
        Self { last: Some(last), ..Self::new(first) }
    }

    /// The same for so long.
    #[must_use]
    pub fn lasting(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// The same, and what is to be done.
    #[must_use]
    pub fn to(self, verdict: Verdict) -> Self {
        Self { to: Some(super::Data::Verdict(verdict)), ..self }
    }
}

/// The kernel's form of a key of several parts: each begins at a multiple of four octets.
pub fn concatenated<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut key = Vec::new();
    for part in parts {
        key.extend(part);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}
