use proptest::prelude::*;

use super::*;

const V4: Home = Home(Variant::Nft, Family::V4);

fn want(manager: Manager) -> Firewall {
    let networks = ["10.244.0.0/16".parse().unwrap(), "fd10:244::/48".parse().unwrap()];
    let own = ["10.244.1.0/24".parse().unwrap(), "fd10:244:0:1::/64".parse().unwrap()];
    Firewall::new(manager, &networks, &own, Some(Masquerade { fully_random: true }), true)
}

/// What a kernel does with a step.
fn apply(state: &mut FirewallState, op: &FirewallOp) {
    match op {
        FirewallOp::Install(home, rules) => drop(state.homes.insert(*home, Held::InForce(*rules))),
        FirewallOp::Remove(home) => assert!(state.homes.remove(home).is_some(), "{home} is not there"),
        FirewallOp::Table(TableOp::Put(own)) => {
            state.tables.insert(own.table.name, HeldTable::InForce(own.table.clone()));
        }
        FirewallOp::Table(TableOp::ChangeElements { before, after }) => {
            let name = before.name;
            assert_eq!(state.tables.get(&name), Some(&HeldTable::InForce(before.clone())));
            state.tables.insert(name, HeldTable::InForce(after.table.clone()));
        }
        FirewallOp::Table(TableOp::Drop(name)) => {
            assert!(state.tables.remove(name).is_some(), "there is no table {name}");
        }
    }
}

fn drop_guard() -> FirewallOp {
    FirewallOp::Table(TableOp::Drop(guard::TABLE))
}

fn policy_drop() -> Obstacle {
    Obstacle {
        chain: "ip filter FORWARD".into(),
        hook: Hook::Forward,
        family: Some(Family::V4),
        variant: Some(Variant::Nft),
        rule: None,
    }
}

fn tunnel_guard(nodes: u8) -> Guard {
    let sender = |last: u8| ([192, 168, 77, last].into(), vec![Prefix::host([10, 244, last, 0].into())]);
    Guard { port: 8472, senders: Senders::new((0..nodes).map(sender)), untracked: true, check: None }
}

fn held_tables() -> impl Strategy<Value = BTreeMap<TableName, HeldTable>> {
    let held = prop_oneof![
        Just(HeldTable::Changed),
        (0..3u8).prop_map(|nodes| HeldTable::InForce(Arc::new(tunnel_guard(nodes).table()))),
    ];
    prop::collection::btree_map(prop::sample::select(&OWN_TABLES[..]), held, 0..4)
}

fn states() -> impl Strategy<Value = FirewallState> {
    let homes =
        prop_oneof![Just(V4), Just(Home(Variant::Legacy, Family::V4)), Just(Home(Variant::Nft, Family::V6)),];
    let held = prop_oneof![Just(Held::Changed), Just(Held::InForce(want(Manager::Iptables).rules[0]))];
    let variant = prop_oneof![Just(None), Just(Some(Variant::Nft)), Just(Some(Variant::Legacy))];
    let obstacles = prop::collection::vec(Just(policy_drop()), 0..2);
    (prop::collection::btree_map(homes, held, 0..5), variant, held_tables(), obstacles).prop_map(
        |(homes, variant, tables, obstacles)| FirewallState {
            homes,
            variant,
            installed: variant.into_iter().collect(),
            tables,
            foreign: Foreign { obstacles, refuses_input: None },
        },
    )
}

proptest! {
    #[test]
    fn one_pass_converges_and_the_next_does_nothing(mut state in states(), nft in any::<bool>(), nodes in 0..3u8) {
        let mut want = want(if nft { Manager::Nftables } else { Manager::Iptables });
        want.guard = (nodes > 0).then(|| tunnel_guard(nodes));
        let ops = diff(&want, &state);
        // What masquerades is in force before what did goes.
        let first_removal = ops.iter().position(|op| matches!(op, FirewallOp::Remove(_) | FirewallOp::Table(TableOp::Drop(_))));
        let last_install = ops.iter().rposition(|op| matches!(op, FirewallOp::Install(..) | FirewallOp::Table(TableOp::Put(_))));
        prop_assert!(first_removal.is_none() || last_install < first_removal);
        ops.iter().for_each(|op| apply(&mut state, op));
        prop_assert_eq!(diff(&want, &state), vec![]);
    }
}

#[test]
fn nothing_wanted_leaves_nothing() {
    let none = Firewall::new(Manager::Iptables, &["10.244.0.0/16".parse().unwrap()], &[], None, false);
    let tables = BTreeMap::from([(guard::TABLE, HeldTable::Changed)]);
    let mut state = FirewallState { tables, ..FirewallState::default() };
    state.homes.insert(V4, Held::Changed);
    assert_eq!(diff(&none, &state), [drop_guard(), FirewallOp::Remove(V4)]);
}

#[test]
fn a_policy_of_drop_in_iptables_is_opened_from_nftables_mode_and_closed_when_it_goes() {
    let want = want(Manager::Nftables);
    let mut state = FirewallState {
        variant: Some(Variant::Nft),
        installed: BTreeSet::from([Variant::Nft]),
        ..FirewallState::default()
    };
    diff(&want, &state).iter().for_each(|op| apply(&mut state, op));
    state.foreign.obstacles.push(policy_drop());
    let only_forward = Rules { masquerade: None, ..want.rules[0] };
    assert_eq!(diff(&want, &state), [FirewallOp::Install(V4, only_forward)]);
    assert_eq!(state.troubles(&want), [""; 0]);
    diff(&want, &state).iter().for_each(|op| apply(&mut state, op));
    state.foreign.obstacles.clear();
    assert_eq!(diff(&want, &state), [FirewallOp::Remove(V4)]);
}

#[test]
fn what_cannot_be_opened_is_said_once_for_those_it_concerns() {
    let want = want(Manager::Nftables);
    let without_program = FirewallState {
        foreign: Foreign { obstacles: vec![policy_drop()], refuses_input: None },
        ..FirewallState::default()
    };
    let said = without_program.troubles(&want);
    assert!(said.len() == 1 && said[0].contains("10.244.0.0/16") && !said[0].contains("fd10"), "{said:?}");
    let hidden = Obstacle { hook: Hook::Postrouting, rule: Some("ACCEPT"), ..policy_drop() };
    let state = FirewallState {
        foreign: Foreign { obstacles: vec![hidden], refuses_input: None },
        ..without_program
    };
    assert_eq!(state.troubles(&want), [""; 0]);
    assert_eq!(state.troubles(&self::want(Manager::Iptables)).len(), 1);
}

#[test]
fn a_node_that_comes_changes_elements_only_and_a_firewall_that_refuses_input_the_table() {
    let want = |nodes| Firewall { guard: Some(tunnel_guard(nodes)), ..want(Manager::Nftables) };
    let mut state = FirewallState::default();
    diff(&want(1), &state).iter().for_each(|op| apply(&mut state, op));
    let ops = diff(&want(2), &state);
    assert!(matches!(ops[..], [FirewallOp::Table(TableOp::ChangeElements { .. })]), "{ops:?}");
    state.foreign.refuses_input = Some("ip filter INPUT".into());
    // Without a check nothing of this table is left to do.
    assert_eq!(diff(&want(1), &state), [drop_guard()]);
}
