//! What a kubeconfig says, read as kubectl reads it: an empty field is an absent one, and what contradicts itself is an
//! error. Nothing is read but the text: files that it names are [`Piece::File`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use http::Uri;
use k8s_openapi::ByteString;
use kube::config::AuthInfo;
use serde::de::{IgnoredAny, IntoDeserializer, value};
use serde::{Deserialize, Deserializer};

/// How to reach an API server, and how to prove who we are.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    /// The server's address.
    pub(super) server: Uri,
    /// The authority that signs for the server; the system's where there is none.
    pub(super) authority: Option<Piece>,
    /// Whether any certificate will do.
    pub(super) insecure: bool,
    /// The name that the server's certificate has to have, in place of the address.
    pub(super) server_name: Option<String>,
    /// A proxy that is asked for.
    pub(super) proxy: Option<String>,
    /// Who we are.
    pub(super) login: Login,
}

/// Credentials.
#[derive(Debug, Clone, Default)]
pub(super) struct Login {
    /// A bearer token.
    pub(super) token: Option<String>,
    /// A file with one, which wins as long as it can be read.
    pub(super) token_file: Option<PathBuf>,
    /// User and password.
    pub(super) basic: Option<(String, String)>,
    /// A client certificate and its key.
    pub(super) certificate: Option<(Piece, Piece)>,
    /// Whom to act as.
    pub(super) acting: AuthInfo,
}

/// A certificate or key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// As it stands in the kubeconfig.
    Data(Vec<u8>),
    /// In a file of its own.
    File(PathBuf),
}

/// A kubeconfig, as far as it concerns us. A field that is null is an absent one, too.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    contexts: Vec<Named>,
    #[serde(default, deserialize_with = "or_default")]
    clusters: Vec<Named>,
    #[serde(default, deserialize_with = "or_default")]
    users: Vec<Named>,
}

/// One entry of a list of these.
#[derive(Deserialize)]
struct Named {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    context: Option<Pair>,
    cluster: Option<Cluster>,
    user: Option<User>,
}

#[derive(Deserialize)]
struct Pair {
    #[serde(default, deserialize_with = "or_default")]
    cluster: String,
    user: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<String>,
    password: Option<String>,
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
    r#as: Option<String>,
    as_uid: Option<String>,
    as_groups: Option<Vec<String>>,
    as_user_extra: Option<HashMap<String, Vec<String>>>,
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

fn find<'a>(entries: &'a [Named], name: &str, kind: &str) -> Result<&'a Named> {
    let found = entries.iter().find(|entry| entry.name == name);
    found.with_context(|| format!("{kind} {name:?} is named, and not among its {kind}s"))
}

impl Access {
    /// Reads a kubeconfig that lies in `directory`, which relative paths start from.
    ///
    /// # Errors
    /// It is no kubeconfig, contradicts itself, or asks for something that we do not do.
    pub(super) fn parse(text: &str, directory: &Path) -> Result<Self> {
        // An excerpt, as the parser adds one to an error, may be a token.
        let options = serde_saphyr::options! { with_snippet: false };
        let all: Kubeconfig =
            serde_saphyr::from_str_with_options(text, options).context("it is no kubeconfig")?;
        let name = given(all.current_context.as_deref()).context(
            "it has no current-context: name one (kubectl config use-context NAME --kubeconfig FILE)",
        )?;
        let context = find(&all.contexts, name, "context")?.context.as_ref();
        let context = context.with_context(|| format!("context {name:?} is empty"))?;
        let cluster = find(&all.clusters, &context.cluster, "cluster")?.cluster.as_ref();
        let cluster = cluster.with_context(|| format!("cluster {:?} is empty", context.cluster))?;
        let login = match given(context.user.as_deref()) {
            // Nobody is asked for, as kubectl allows.
            None => Login::default(),
            Some(user) => {
                let info = find(&all.users, user, "user")?.user.as_ref();
                let login = info.map_or_else(|| Ok(Login::default()), |info| Login::parse(info, directory));
                login.with_context(|| format!("user {user:?}"))?
            }
        };
        let access = Self::of_cluster(cluster, directory);
        Ok(Self { login, ..access.with_context(|| format!("cluster {:?}", context.cluster))? })
    }

    fn of_cluster(cluster: &Cluster, directory: &Path) -> Result<Self> {
        let server = given(cluster.server.as_deref()).context("it has no server")?;
        let authority = piece(
            "certificate-authority",
            cluster.certificate_authority.as_deref(),
            cluster.certificate_authority_data.as_deref(),
            directory,
        )?;
        let insecure = cluster.insecure_skip_tls_verify.unwrap_or_default();
        ensure!(
            !insecure || authority.is_none(),
            "insecure-skip-tls-verify and a certificate-authority exclude each other: remove the former"
        );
        Ok(Self {
            server: parse_url(server).with_context(|| format!("its server {server:?} is not a URL"))?,
            authority,
            insecure,
            server_name: given(cluster.tls_server_name.as_deref()).map(str::to_owned),
            proxy: given(cluster.proxy_url.as_deref()).map(str::to_owned),
            login: Login::default(),
        })
    }
}

impl Login {
    fn parse(info: &User, directory: &Path) -> Result<Self> {
        if info.exec.is_some() || info.auth_provider.is_some() {
            bail!(
                "its user logs in by running a program (exec, auth-provider), and this daemon runs none: give that user a \
                 token, a tokenFile or a client certificate"
            );
        }
        let certificate = piece(
            "client-certificate",
            info.client_certificate.as_deref(),
            info.client_certificate_data.as_deref(),
            directory,
        )?;
        let key =
            piece("client-key", info.client_key.as_deref(), info.client_key_data.as_deref(), directory)?;
        let certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                bail!("it has a client-certificate and no client-key: add client-key or client-key-data")
            }
            (None, Some(_)) => {
                bail!(
                    "it has a client-key and no client-certificate: add client-certificate or client-certificate-data"
                )
            }
        };
        let token = given(info.token.as_deref()).map(str::to_owned);
        let (user, password) = (given(info.username.as_deref()), given(info.password.as_deref()));
        let basic = match (user, password) {
            (None, None) => None,
            (Some(user), password) => Some((user.to_owned(), password.unwrap_or_default().to_owned())),
            (None, Some(_)) => {
                bail!("it has a password and no username: add the username or remove the password")
            }
        };
        ensure!(
            token.is_none() || basic.is_none(),
            "it has a token and a username: kubectl allows one way to log in, remove one of them"
        );
        let acting = AuthInfo {
            impersonate: given(info.r#as.as_deref()).map(str::to_owned),
            impersonate_uid: given(info.as_uid.as_deref()).map(str::to_owned),
            impersonate_groups: info.as_groups.clone(),
            impersonate_user_extra: info.as_user_extra.clone(),
            ..AuthInfo::default()
        };
        let token_file = given(info.token_file.as_deref()).map(|path| directory.join(path));
        Ok(Self { token, token_file, basic, certificate, acting })
    }
}

/// Reads `https://HOST:PORT`.
pub(super) fn parse_url(text: &str) -> Option<Uri> {
    text.parse().ok().filter(|url: &Uri| url.host().is_some() && url.scheme().is_some())
}

/// An empty field is an absent one.
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn piece(field: &str, file: Option<&str>, data: Option<&str>, directory: &Path) -> Result<Option<Piece>> {
    match (given(file), given(data)) {
        (None, None) => Ok(None),
        (Some(file), None) => Ok(Some(Piece::File(directory.join(file)))),
        (None, Some(data)) => {
            let text: value::StrDeserializer<'_, value::Error> = data.into_deserializer();
            let bytes =
                ByteString::deserialize(text).with_context(|| format!("{field}-data is not base64"))?;
            Ok(Some(Piece::Data(bytes.0)))
        }
        (Some(_), Some(_)) => bail!("it has both {field} and {field}-data: remove one of them"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A good kubeconfig with another cluster and user.
    fn parse(cluster: Value, user: &Value) -> Result<Access> {
        let mut merged = json!({ "server": "https://10.0.0.1:6443" });
        if let (Some(all), Value::Object(other)) = (merged.as_object_mut(), cluster) {
            all.extend(other);
        }
        let text = json!({
            "current-context": "x",
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "clusters": [{ "name": "c", "cluster": merged }],
            "users": [{ "name": "u", "user": user }],
        });
        Access::parse(&text.to_string(), Path::new("/etc/k"))
    }

    fn file(path: &str) -> Piece {
        Piece::File(path.into())
    }

    #[test]
    fn an_empty_field_is_an_absent_one() {
        let login = parse(json!({}), &json!({ "token": "", "tokenFile": "t" })).unwrap().login;
        assert_eq!((login.token, login.token_file), (None, Some("/etc/k/t".into())));
        let user = json!({ "username": "", "password": "", "token": "abc", "as": "", "client-key": null });
        let login = parse(json!({}), &user).unwrap().login;
        assert_eq!(
            (login.token.as_deref(), login.basic, login.acting.impersonate),
            (Some("abc"), None, None)
        );
        let user = json!({
            "client-certificate-data": "", "client-certificate": "current.pem",
            "client-key-data": "", "client-key": "/abs/current.pem", "tokenFile": "",
        });
        let login = parse(json!({}), &user).unwrap().login;
        assert_eq!(login.certificate, Some((file("/etc/k/current.pem"), file("/abs/current.pem"))));
        assert_eq!(login.token_file, None);
        let cluster = json!({
            "certificate-authority-data": "", "certificate-authority": "ca.crt", "tls-server-name": "", "proxy-url": "",
        });
        let access = parse(cluster, &json!({})).unwrap();
        assert_eq!(
            (access.authority, access.server_name, access.proxy),
            (Some(file("/etc/k/ca.crt")), None, None)
        );
    }

    #[test]
    fn what_is_given_is_kept() {
        let login = parse(json!({}), &json!({ "token": "a", "tokenFile": "/t" })).unwrap().login;
        assert_eq!((login.token.as_deref(), login.token_file), (Some("a"), Some("/t".into())));
        let user = json!({ "username": "u", "as": "x", "as-groups": ["g"], "as-user-extra": { "k": ["v"] } });
        let login = parse(json!({}), &user).unwrap().login;
        assert_eq!(login.basic, Some(("u".into(), String::new())));
        assert_eq!(login.acting.impersonate_groups, Some(vec!["g".into()]));
        let user = json!({ "client-certificate-data": "YWJj", "client-key": "k" });
        let login = parse(json!({ "certificate-authority-data": "eHl6" }), &user).unwrap();
        assert_eq!(login.authority, Some(Piece::Data(b"xyz".to_vec())));
        assert_eq!(login.login.certificate, Some((Piece::Data(b"abc".to_vec()), file("/etc/k/k"))));
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        for (cluster, user, parts) in [
            (json!({}), json!({ "token": "a", "username": "u" }), ["a token and a username", "remove one"]),
            (json!({}), json!({ "password": "p" }), ["no username", "remove the password"]),
            (json!({}), json!({ "client-certificate": "c" }), ["no client-key", "client-key-data"]),
            (json!({}), json!({ "client-key-data": "YQ==" }), ["no client-certificate", "add"]),
            (
                json!({}),
                json!({ "client-key": "k", "client-key-data": "YQ==" }),
                ["both client-key", "remove one"],
            ),
            (json!({}), json!({ "client-certificate-data": "%" }), ["client-certificate-data", "base64"]),
            (json!({}), json!({ "exec": { "command": "x" } }), ["exec", "tokenFile"]),
            (json!({}), json!({ "auth-provider": { "name": "oidc" } }), ["auth-provider", "tokenFile"]),
            (json!({ "server": "" }), json!({}), ["\"c\"", "no server"]),
            (json!({ "server": "10.0.0.1" }), json!({}), ["\"c\"", "not a URL"]),
            (
                json!({ "insecure-skip-tls-verify": true, "certificate-authority": "ca" }),
                json!({}),
                ["insecure-skip-tls-verify", "remove"],
            ),
            (
                json!({ "certificate-authority": "ca", "certificate-authority-data": "YQ==" }),
                json!({}),
                ["both certificate-authority", "remove one"],
            ),
        ] {
            let error = format!("{:#}", parse(cluster, &user).unwrap_err());
            assert!(parts.iter().all(|part| error.contains(part)), "{user}: {error}");
        }
    }

    #[test]
    fn an_error_tells_no_secret() {
        for text in
            ["users:\n- user:\n    token: secret\n  broken: [yaml", "users:\n- user: { token: secret\n"]
        {
            let error = format!("{:#}", Access::parse(text, Path::new("/")).unwrap_err());
            assert!(!error.contains("secret") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_is_named_and_not_there_is_an_error() {
        let text = |context: &str, cluster: &str, user: &str| {
            json!({
                "current-context": context,
                "contexts": [{ "name": "x", "context": { "cluster": cluster, "user": user } }],
                "clusters": [{ "name": "c", "cluster": { "server": "https://h" } }],
                "users": null,
            })
            .to_string()
        };
        let parse = |text: String| Access::parse(&text, Path::new("/"));
        for (text, part) in [
            (text("", "c", ""), "no current-context"),
            (text("y", "c", ""), "context \"y\" is named"),
            (text("x", "d", ""), "cluster \"d\" is named"),
            (text("x", "c", "u"), "user \"u\" is named"),
            ("no: [yaml".to_owned(), "no kubeconfig"),
            (String::new(), "no"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
        assert!(parse(text("x", "c", "")).unwrap().login.token.is_none(), "nobody is asked for");
    }
}
