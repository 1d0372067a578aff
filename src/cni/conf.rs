//! The network configuration on standard input, as far as every plugin reads it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::request::is_name;
use super::{CniError, Code, Outcome, Version};

/// One attachment of a container, as GC lists those that are still valid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The device inside it.
    pub ifname: String,
}

/// A network configuration: what all plugins need, and the rest as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// `cniVersion`.
    pub version: Version,
    /// `name` of the network.
    pub name: String,
    /// Every field, with those above.
    pub fields: Map<String, Value>,
}

impl NetConf {
    /// Reads standard input.
    ///
    /// # Errors
    /// Code 6 for what is no JSON object, 7 for a missing or bad name, 1 for a version that is not spoken.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let fields: Map<String, Value> = serde_json::from_slice(input).map_err(|error| {
            CniError::new(
                Code::Decode,
                "the network configuration on standard input is no JSON object",
                error.to_string(),
            )
        })?;
        let text = |key: &'static str| match fields.get(key) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(other) => Err(not_of_form(key, other, "a string")),
        };
        let name = text("name")?.to_owned();
        if !is_name(&name) {
            let details = if name.is_empty() {
                "write \"name\" into the configuration".to_owned()
            } else {
                format!("{name:?} may hold letters, digits, _, . and -, and begins with a letter or digit")
            };
            return Err(CniError::new(Code::NetworkConfig, "the network has no usable name", details));
        }
        let version = Version::parse(text("cniVersion")?)?;
        Ok(Self { version, name, fields })
    }

    /// One field, read into `T`; `None` if it is absent or null.
    ///
    /// # Errors
    /// Code 6 for a value of another form.
    pub fn field<T: for<'a> Deserialize<'a>>(&self, key: &str) -> Result<Option<T>, CniError> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|error| {
                CniError::new(
                    Code::Decode,
                    format!("{key} in the network configuration cannot be read"),
                    error.to_string(),
                )
            }),
        }
    }

    /// `prevResult`: what ADD of this or the plugin before returned.
    ///
    /// # Errors
    /// Code 6 for something that is no result.
    pub fn previous(&self) -> Result<Option<Outcome>, CniError> {
        self.field("prevResult")
    }

    /// `ipam.type`: the plugin that hands out addresses; `None` for a network without.
    ///
    /// # Errors
    /// Code 6 if it is not of its form.
    pub fn ipam_type(&self) -> Result<Option<String>, CniError> {
        #[derive(Deserialize)]
        struct Ipam {
            #[serde(default, rename = "type")]
            kind: String,
        }
        let ipam: Option<Ipam> = self.field("ipam")?;
        Ok(ipam.map(|ipam| ipam.kind).filter(|kind| !kind.is_empty()))
    }

    /// `cni.dev/valid-attachments`: all attachments that GC is to keep. An empty list keeps none.
    ///
    /// # Errors
    /// Code 7 if the list is missing: without it, nothing may be removed.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, CniError> {
        self.field("cni.dev/valid-attachments")?.ok_or_else(|| {
            CniError::new(
                Code::NetworkConfig,
                "cni.dev/valid-attachments is missing",
                "the runtime lists every attachment that is still valid; without the list nothing is removed",
            )
        })
    }
}

pub(super) fn not_of_form(key: &str, value: &Value, form: &str) -> CniError {
    let mut shown = value.to_string();
    if shown.len() > 80 {
        shown = shown.chars().take(80).collect::<String>() + "...";
    }
    CniError::new(Code::Decode, format!("{key} in the network configuration is not {form}"), shown)
}
