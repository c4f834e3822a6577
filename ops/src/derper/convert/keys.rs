//! Whose server it is, and with whom it meshes.

use std::path::{Path, PathBuf};

use causeway_proto::key::{MeshKey, NodePrivate};
use serde::Deserialize;

use super::{Work, absolute, read, text_of};

/// Name of the file that keeps the server key.
const SERVER_KEY: &str = "derp-server.key";

impl Work<'_> {
    pub(super) fn server_key(&mut self) -> Result<(), String> {
        #[derive(Deserialize)]
        struct KeyFile {
            #[serde(rename = "PrivateKey")]
            private_key: String,
        }
        let path = match self.flags.given("c").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from("/var/lib/derper/derper.key"),
        };
        if !path.exists() {
            let kept = text_of(&absolute(&self.options.out.join(SERVER_KEY)));
            self.set("derp.server_key_file", kept);
            self.differs("-c", &format!("{} is not there: the node makes a key of its own at its first start", path.display()));
            return Ok(());
        }
        // The file's text never goes into a message.
        let file: KeyFile = serde_json::from_str(&read(&path, "-c")?)
            .map_err(|_| format!("-c: {}: wanted {{\"PrivateKey\":\"privkey:…\"}}", path.display()))?;
        let key: NodePrivate = file.private_key.parse().map_err(|error| format!("-c: {}: {error}", path.display()))?;
        let kept = self.secret(SERVER_KEY, format!("{}\n", key.expose_text()));
        self.set("derp.server_key_file", kept);
        self.kept("c", "derp.server_key_file: the server keeps its key");
        Ok(())
    }

    pub(super) fn mesh(&mut self) -> Result<(), String> {
        let with: Vec<String> =
            self.flags.text("mesh-with").split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        if let Some(host) = with.iter().find(|host| host.matches('/').count() > 1) {
            return Err(format!("-mesh-with: {host:?} has more than one slash: wanted HOST or HOST/DIALHOST"));
        }
        let Some(key) = self.mesh_key()? else {
            if !with.is_empty() {
                return Err("-mesh-with: needs -mesh-psk-file, as with derper".into());
            }
            return Ok(());
        };
        let path = self.secret("derp-mesh.key", format!("{}\n", key.expose_hex()));
        self.set("derp_mesh.key_file", path);
        self.set("derp_mesh.allow", vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()]);
        self.kept("mesh-psk-file", "derp_mesh.key_file");
        self.differs(
            "-mesh-psk-file",
            "derp_mesh.allow takes the key from every network, as derper does: list those of your derpers",
        );
        if !with.is_empty() {
            self.set("derp_mesh.with", with);
        }
        self.kept("mesh-with", "derp_mesh.with");
        Ok(())
    }

    fn mesh_key(&mut self) -> Result<Option<MeshKey>, String> {
        if let Some(url) = self.flags.given("secrets-url").filter(|url| !url.is_empty()) {
            let secret = format!("{}/meshkey", self.flags.text("secrets-path-prefix").trim_end_matches('/'));
            return Err(format!(
                "-secrets-url: a node asks no setec server: save the secret {secret:?} of {url} in a file, and give that as -mesh-psk-file \
                 instead of the -secrets flags"
            ));
        }
        for name in ["secrets-path-prefix", "secrets-cache-dir"] {
            self.unused(name, "not used without -secrets-url, by derper neither");
        }
        let home = (self.environment)("HOME").unwrap_or_default();
        let usual = ["/home/derp/keys/derp-mesh.key".to_owned(), format!("{home}/keys/derp-mesh.key")];
        let path = match self.flags.given("mesh-psk-file") {
            Some("") => None,
            Some(path) => Some(path.to_owned()),
            None => usual.into_iter().find(|path| Path::new(path).is_file()),
        };
        let Some(path) = path.map(PathBuf::from) else { return Ok(None) };
        let text = read(&path, "-mesh-psk-file")?;
        text.trim().parse().map(Some).map_err(|error| format!("-mesh-psk-file: {}: {error}", path.display()))
    }
}
