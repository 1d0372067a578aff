//! `DataPath`: where packets are wrapped. A key of ours, which flannel ignores.

use super::BackendError;
use crate::config::netconf::{NetConfError, Object, Warning};

/// The value of `Backend.DataPath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataPath {
    /// Where it is best for the backend and the kernel.
    Auto,
    /// In the kernel, or not at all.
    Kernel,
    /// In this process.
    Userspace,
}

impl DataPath {
    /// Reads the key; `None` if it is not there.
    fn read(object: &Object<'_>) -> Result<Option<Self>, NetConfError> {
        let expected = r#""auto", "kernel" or "userspace""#;
        match object.string("DataPath", expected)?.map(str::to_ascii_lowercase).as_deref() {
            None => Ok(None),
            Some("auto") => Ok(Some(Self::Auto)),
            Some("kernel") => Ok(Some(Self::Kernel)),
            Some("userspace") => Ok(Some(Self::Userspace)),
            Some(_) => Err(object.wrong_type("DataPath", expected)),
        }
    }

    /// Reads the key for a backend that has one data path, or none. `remedy` says why another cannot be, and what to do.
    pub(super) fn only(
        object: &Object<'_>,
        backend: &'static str,
        only: Option<Self>,
        remedy: &'static str,
    ) -> Result<(), BackendError> {
        match Self::read(object)? {
            None | Some(Self::Auto) => Ok(()),
            given if given == only => Ok(()),
            Some(given) => Err(BackendError::DataPath { value: given.as_str(), backend, remedy }),
        }
    }

    /// Reads the key for a backend that has both. `Mode` is read beside it: for vxlan that was the name of this key, but in
    /// flannel it is a key of the backend wireguard with other values.
    pub(super) fn or_mode(object: &Object<'_>, warnings: &mut Vec<Warning>) -> Result<Self, BackendError> {
        let data_path = Self::read(object)?;
        let Some(mode) = Self::mode(object)? else { return Ok(data_path.unwrap_or(Self::Auto)) };
        if let Some(data_path) = data_path.filter(|data_path| *data_path != mode) {
            return Err(BackendError::TwoDataPaths { data_path: data_path.as_str(), mode: mode.as_str() });
        }
        warnings.push(Warning::Mode { value: mode.as_str() });
        Ok(mode)
    }

    fn mode(object: &Object<'_>) -> Result<Option<Self>, NetConfError> {
        let expected = r#""kernel" or "userspace" (the key is named DataPath now)"#;
        match object.string("Mode", expected)?.map(str::to_ascii_lowercase).as_deref() {
            None => Ok(None),
            Some("kernel") => Ok(Some(Self::Kernel)),
            Some("userspace") => Ok(Some(Self::Userspace)),
            Some(_) => Err(object.wrong_type("Mode", expected)),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}
