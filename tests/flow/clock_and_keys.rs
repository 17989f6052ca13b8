//! Starting a hub: keys, folders, and faults in what operators write.

use std::os::unix::fs::PermissionsExt;

use gridhub::{error::Error, hub::Hub};

use crate::support::{TestClock, TestHub, changed, opening};

async fn start_fails(change: impl FnOnce(&mut gridhub::hub::Opening, &std::path::Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut opening = opening(folder.path(), &TestClock::at("2026-01-07T01:00:00Z"));
    change(&mut opening, folder.path());
    match Hub::open(opening).await {
        Ok(_) => panic!("the hub started"),
        Err(error @ Error::Setup { .. }) => error.to_string().replace(&folder.path().display().to_string(), "HERE"),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_once_and_kept_from_others() {
    let hub = TestHub::start().await;
    let keys = hub.folder.path().join("keys");
    for name in ["root.wrapped", "log-signing.wrapped"] {
        let mode = std::fs::metadata(keys.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    for name in ["", "wrapping"] {
        let mode = std::fs::metadata(keys.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
    let mode = std::fs::metadata(hub.data()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_does_not_start_on_the_wrong_keys() {
    let said = start_fails(|opening, folder| opening.keys = folder.join("data/keys")).await;
    assert!(said.contains("must not lie inside the data folder"), "{said}");
    let said = start_fails(|opening, folder| {
        std::fs::create_dir_all(&opening.data).unwrap();
        std::os::unix::fs::symlink(&opening.data, folder.join("link")).unwrap();
        opening.keys = folder.join("link").join("keys");
    })
    .await;
    assert!(said.contains("must not lie inside the data folder"), "{said}");

    let mut hub = TestHub::start().await;
    hub.stop();
    let restart = async |hub: &TestHub, keys: &str| {
        let mut opening = opening(hub.folder.path(), &hub.clock);
        opening.keys = hub.folder.path().join(keys);
        Hub::open(opening).await.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(restart(&hub, "elsewhere").await.contains("the keys of this data folder are missing here"));
    let readable = hub.folder.path().join("keys").join("root.wrapped");
    std::fs::set_permissions(&readable, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(restart(&hub, "keys").await.contains("can be read by others (mode 644)"));
    std::fs::set_permissions(&readable, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut other = TestHub::start().await;
    other.stop();
    std::fs::rename(other.folder.path().join("keys"), hub.folder.path().join("others")).unwrap();
    assert!(restart(&hub, "others").await.contains("was written under other keys"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hubs_do_not_share_a_folder() {
    let hub = TestHub::start().await;
    let second = Hub::open(opening(hub.folder.path(), &hub.clock)).await.err().unwrap().to_string();
    assert!(second.contains("another hub is running on this data folder"), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_in_policies_are_named_by_file_and_line() {
    let broken = |file: &'static str, from: &'static str, to: &'static str| {
        start_fails(move |opening, folder| {
            opening.policies = changed(folder, "policies", file, |text| {
                assert!(text.contains(from), "{from}");
                text.replacen(from, to, 1)
            });
        })
    };
    let said = broken("log.cedar", "permit (", "permit").await;
    assert!(said.starts_with("HERE/policies/log.cedar:"), "{said}");
    let said = broken("log.cedar", "Role::\"officer\"", "Rolle::\"officer\"").await;
    assert!(said.starts_with("HERE/policies/log.cedar:") && said.contains("Rolle"), "{said}");
    let said = broken(
        "cdc.cedar",
        "resource.has_token &&\n  [\"case_id\", \"id_no\", \"source_case_id\"]",
        "[\"case_id\", \"sex\"]",
    )
    .await;
    assert!(said.starts_with("HERE/policies/cdc.cedar:"), "{said}");
    assert!(said.contains("grants a token of `cdc.cases.sex`, whose contract names none"), "{said}");
    let said = broken("entities.json", "\"purposes\": [\"audit\"]", "\"purposes\": []").await;
    assert!(said.contains("has no purpose"), "{said}");
    let said = broken("entities.json", "\"id\": \"420191\"", "\"id\": \"420191000000\"").await;
    assert!(said.contains("not in canonical form"), "{said}");
    for (attribute, expected) in [
        ("\"certificates\": [\"dns:Officer.example\"]", "has the certificate `dns:Officer.example`; write `dns:NAME`"),
        ("\"certificates\": [\"dns:büro.example\"]", "has the certificate `dns:büro.example`"),
        ("\"certificates\": [\"ip:127.0.0.1\"]", "has the certificate `ip:127.0.0.1`"),
        ("\"certificates\": [\"cn:\"]", "has the certificate `cn:`"),
        ("\"identities\": [\"https://issuer.example\"]", "write `ISSUER|SUBJECT`"),
        ("\"default_purpose\": \"epidemiology\"", "asks for `epidemiology` by default"),
    ] {
        let said = start_fails(move |opening, folder| {
            opening.policies = changed(folder, "policies", "entities.json", |text| {
                text.replacen("\"purposes\": [\"audit\"]", &format!("\"purposes\": [\"audit\"], {attribute}"), 1)
            });
        })
        .await;
        assert!(said.starts_with("HERE/policies/entities.json: ") && said.contains(expected), "{said}");
    }
    // Nobody could say which of the two is asking.
    let said = start_fails(|opening, folder| {
        opening.policies = changed(folder, "policies", "entities.json", |text| {
            let purposes = "\"purposes\": [\"quality-control\"]";
            text.replace(purposes, &format!("{purposes}, \"certificates\": [\"cn:uploader\"]"))
        });
    })
    .await;
    assert!(said.contains("`cn:uploader` is both Caller::"), "{said}");
    let said = broken("disclosure.json", "cells_at_least", "cells_at_most").await;
    assert!(said.starts_with("HERE/policies/disclosure.json:3: what stands here is no setting"), "{said}");
    let said = broken("disclosure.json", "0.05", "5").await;
    assert_eq!(said, "HERE/policies/disclosure.json:2: `cells_per_subject` is from 0 to 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_in_contracts_are_named_by_file_and_line() {
    let broken = |from: &'static str, to: &'static str| {
        start_fails(move |opening, folder| {
            opening.schemas = changed(folder, "schemas", "community.visits.odcs.yaml", |text| {
                assert!(text.contains(from), "{from}");
                text.replacen(from, to, 1)
            });
        })
    };
    for (from, to, says) in [
        ("kind: DataContract", "kind: DataContract\nknd: x", "knd"),
        ("value: cn_mobile", "value: cn_mobil", "identifier is cn_resident_id, cn_mobile"),
        ("gridhub.subject", "gridhub.subjekt", "unknown key `gridhub.subjekt`"),
        ("gridhub.subject, value: id_no", "gridhub.subject, value: mode", "the subject must be an identifier"),
        ("\"decimal(4,1)\"", "\"decimal(1,4)\"", "physicalType is string"),
        ("apiVersion: v3.1.0", "apiVersion: v2.2.2", "write v3.1.0"),
        ("\"prefix:12\"", "month", "does not generalise"),
    ] {
        let said = broken(from, to).await;
        assert!(said.starts_with("HERE/schemas/community.visits.odcs.yaml:"), "{said}");
        assert!(said.contains(says), "{said}");
    }
}
