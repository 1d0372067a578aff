//! Typed reading of one JSON object by Go's rules.

use std::ops::RangeInclusive;

use encap::Prefix;

use super::json::Json;
use super::{NetConfError, Warning};
use crate::config::nearest;

/// An object's members by known key.
pub(crate) struct Object<'j> {
    /// Path of the object; empty for the whole file.
    path: &'static str,
    /// Known key and the value that counts.
    members: Vec<(&'static str, &'j Json)>,
}

impl<'j> Object<'j> {
    /// Sorts the members of `json` to the `known` keys. No two known keys differ in case only, so
    /// matching in any case is all of Go's rule.
    pub(super) fn new(
        path: &'static str,
        json: &'j Json,
        known: &'static [&'static str],
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, NetConfError> {
        let Json::Object(given) = json else {
            return Err(NetConfError::WrongType {
                path: path.to_owned(),
                value: json.shown(),
                expected: "an object in braces".to_owned(),
            });
        };
        let mut object = Self { path, members: Vec::new() };
        for (key, value) in given {
            let Some(name) = known.iter().copied().find(|name| name.eq_ignore_ascii_case(key)) else {
                let nearest = nearest(key, known.iter().copied());
                warnings.push(Warning::UnknownKey { path: object.path_of(key), nearest });
                continue;
            };
            if let Some(at) = object.members.iter().position(|(other, _)| *other == name) {
                object.members.remove(at);
                warnings.push(Warning::Duplicate { path: object.path_of(name) });
            }
            object.members.push((name, value));
        }
        Ok(object)
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key, null included.
    pub(crate) fn raw(&self, key: &str) -> Option<&'j Json> {
        self.members.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    /// The value of a key. Go leaves a field alone that is null, so null is absent.
    fn get(&self, key: &str) -> Option<&'j Json> {
        self.raw(key).filter(|value| **value != Json::Null)
    }

    /// The error for a key that is there with a value of the wrong kind.
    pub(crate) fn wrong_type(&self, key: &str, expected: &str) -> NetConfError {
        let value = self.raw(key).map(Json::shown).unwrap_or_default();
        NetConfError::WrongType { path: self.path_of(key), value, expected: expected.to_owned() }
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, NetConfError> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong_type(key, "true or false, without quotes")),
        }
    }

    pub(crate) fn string(&self, key: &str, expected: &str) -> Result<Option<&'j str>, NetConfError> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::String(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong_type(key, expected)),
        }
    }

    pub(crate) fn integer(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, NetConfError> {
        let (min, max) = range.into_inner();
        match self.get(key) {
            None => Ok(None),
            Some(Json::Number(value)) => match value.as_u64() {
                Some(value) if (min..=max).contains(&value) => Ok(Some(value)),
                _ => Err(NetConfError::OutOfRange {
                    path: self.path_of(key),
                    value: value.to_string(),
                    min,
                    max,
                }),
            },
            Some(_) => {
                Err(self.wrong_type(key, &format!("a whole number from {min} to {max}, without quotes")))
            }
        }
    }

    /// A pod network of one family.
    pub(super) fn network(&self, key: &str, ipv4: bool) -> Result<Option<Prefix>, NetConfError> {
        let Some(text) = self.string(key, "a prefix in quotes, such as \"10.244.0.0/16\"")? else {
            return Ok(None);
        };
        let path = self.path_of(key);
        let value: Prefix =
            text.parse().map_err(|reason| NetConfError::Prefix { path: path.clone(), reason })?;
        if value.is_ipv4() != ipv4 {
            return Err(NetConfError::WrongFamily { path, value, ipv4 });
        }
        Ok(Some(value))
    }
}

/// Why a prefix cannot be a pod network, if it cannot: one route sends all of it into the tunnel.
pub(super) fn unusable(network: &Prefix) -> Option<&'static str> {
    let addr = network.addr();
    if network.len() == 0 {
        Some("is every address there is")
    } else if network.contains([127, 0, 0, 1].into()) || addr.is_loopback() {
        Some("holds the machine's own loopback addresses")
    } else if addr.is_multicast() {
        Some("is multicast")
    } else {
        None
    }
}
