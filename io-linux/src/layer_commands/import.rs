//! `glassine layer import`: a layer without a parent, of an image.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::NamedTempFile;

use super::chain::Chain;
use super::output::NewLayerReport;
use super::progress::Progress;
use super::{merge, name};
use crate::cli::layer::Import;
use crate::layer::{About, LayerWriter};
use crate::new_file::{refuse_existing, temporary};

const QCOW2: [u8; 4] = *b"QFI\xfb";
/// How often it is looked whether qemu-img is done.
const WAIT: Duration = Duration::from_millis(20);

pub(super) fn import(
    arguments: &Import,
    progress: &mut Progress,
) -> anyhow::Result<NewLayerReport> {
    let Import { image, out, compress } = arguments;
    refuse_existing(out)?;
    // It goes at the end.
    let converted = if is_qcow2(image)? { Some(convert(image, out, progress)?) } else { None };
    let raw = converted.as_ref().map_or(image.as_path(), NamedTempFile::path);
    let chain = Chain::open(raw, &[])?;
    if !chain.layers().is_empty() {
        bail!("{} is a layer already; use it as it is", image.display());
    }
    let about =
        About { virtual_bytes: chain.size_bytes(), parent: None, compress: compress.level() };
    let mut new = LayerWriter::create(out, &about)?;
    merge::write(&chain, &mut new, &format!("importing {}", name(image)), progress)?;
    Ok(NewLayerReport::new(out, &new.finish()?))
}

/// An error for an image that is not what its bytes are: they would be taken for those of a disk.
pub(super) fn refuse_qcow2(image: &Path) -> anyhow::Result<()> {
    let shown = image.display();
    ensure!(
        !is_qcow2(image)?,
        "{shown} is a qcow2 image, not a raw one; make a layer of it with glassine layer import"
    );
    Ok(())
}

fn is_qcow2(image: &Path) -> anyhow::Result<bool> {
    let mut magic = [0; QCOW2.len()];
    // Whatever else is wrong with the file is said when it is opened as an image.
    let is_file = image.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Ok(false);
    }
    match File::open(image).and_then(|mut file| file.read_exact(&mut magic)) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        read => read
            .map(|()| magic == QCOW2)
            .with_context(|| format!("cannot read {}; name a readable image", image.display())),
    }
}

/// Has an image made raw, in a file beside the output.
fn convert(image: &Path, out: &Path, progress: &mut Progress) -> anyhow::Result<NamedTempFile> {
    let shown = image.display();
    // It takes a path that begins with a word and a colon for a protocol.
    let image = image.canonicalize().with_context(|| format!("cannot find {shown}"))?;
    let raw = temporary(out)?;
    let target = raw.path().canonicalize().context("the temporary image is gone")?;
    progress.begin(format!("converting {}", name(&image)), 0)?;
    let mut child = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([&image, &target])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!(
                "{shown} is a qcow2 image, and needs qemu-img, which cannot be run; install it (on Debian: qemu-utils), or convert the image to raw elsewhere"
            )
        })?;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for qemu-img")? {
            break status;
        }
        if let Err(interrupted) = progress.check() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            return Err(interrupted);
        }
        thread::sleep(WAIT);
    };
    if !status.success() {
        let mut said = String::new();
        if let Some(errors) = child.stderr.take() {
            // What can be had of it.
            let _ = errors.take(4096).read_to_string(&mut said);
        }
        bail!(
            "qemu-img cannot convert {shown} ({status}): {}; check it with qemu-img check",
            super::printable(said.trim())
        );
    }
    Ok(raw)
}
