//! Which offloads the data path may use.

use core::fmt;

/// One offload that can be switched off, and that a kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// TCP comes from the tunnel device in super-packets, and is cut here.
    Tso,
    /// UDP comes from the tunnel device in super-packets, and is cut here.
    Uso,
    /// Many datagrams per send: `UDP_SEGMENT`.
    Gso,
    /// Many datagrams per receive: `UDP_GRO`.
    Gro,
    /// Received packets go to the tunnel device joined to super-packets.
    Coalesce,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Self; 5] = [Self::Tso, Self::Uso, Self::Gso, Self::Gro, Self::Coalesce];

    /// Its name in the environment, in log lines and as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tso => "tso",
            Self::Uso => "uso",
            Self::Gso => "gso",
            Self::Gro => "gro",
            Self::Coalesce => "coalesce",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(u8);

impl Features {
    /// None: packets go one by one through a plain device.
    pub const NONE: Self = Self(0);
    /// All of them.
    pub const ALL: Self = {
        let mut all = 0;
        let mut at = 0;
        while at < Feature::ALL.len() {
            all |= Feature::ALL[at].bit();
            at += 1;
        }
        Self(all)
    };

    /// Whether the feature is in the set.
    #[inline]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// The set with the feature.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | feature.bit())
    }

    /// The set without the feature.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !feature.bit())
    }

    /// As a number, for an atomic variable.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From [`Features::bits`].
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Feature::ALL.into_iter().filter(|feature| self.has(*feature)).map(Feature::as_str);
        f.write_str(names.next().unwrap_or("none"))?;
        names.try_for_each(|name| write!(f, ",{name}"))
    }
}
