//! One value per address family.

use encap::Family;

/// Both families, in the order in which they are shown and served.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A value for IPv4 and one for IPv6. The families of a node live and fail apart from each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByFamily<T> {
    /// IPv4's.
    pub v4: T,
    /// IPv6's.
    pub v6: T,
}

impl<T> ByFamily<T> {
    /// Makes one for each family.
    pub fn of(mut make: impl FnMut(Family) -> T) -> Self {
        Self { v4: make(Family::V4), v6: make(Family::V6) }
    }

    /// The value of one family.
    pub fn get(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The value of one family, to be changed.
    pub fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Both values, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        [(Family::V4, &self.v4), (Family::V6, &self.v6)].into_iter()
    }
}
