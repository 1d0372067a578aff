//! `LODEN_OFFLOAD_DISABLE`: which offloads the data path may use.

use encap::offload::{Feature, Features};

/// All features but those that a comma-separated list names; `all` names every one. Second, the words that name none.
pub(super) fn without(list: &str) -> (Features, Vec<&str>) {
    let (mut features, mut unknown) = (Features::ALL, Vec::new());
    for word in list.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match Feature::ALL.into_iter().find(|feature| feature.as_str().eq_ignore_ascii_case(word)) {
            Some(feature) => features = features.without(feature),
            None if word.eq_ignore_ascii_case("all") => features = Features::NONE,
            None => unknown.push(word),
        }
    }
    (features, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_takes_features_away() {
        assert_eq!(without(""), (Features::ALL, vec![]));
        assert_eq!(without(" all "), (Features::NONE, vec![]));
        let (features, unknown) = without("TSO, uso,warp,,gro");
        assert_eq!((features.to_string().as_str(), unknown), ("gso,coalesce", vec!["warp"]));
    }
}
