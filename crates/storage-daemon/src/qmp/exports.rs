//! Exports: made, removed, listed, and resumed.

use coblk::block::IoStatus;
use coblk::export::{ExportInfo, ExportOptions, ExportTypes, RemoveMode};
use serde::{Deserialize, Serialize};

use super::{Commands, Id};

#[derive(Deserialize)]
struct Delete {
    id: String,
    #[serde(default)]
    mode: RemoveMode,
}

/// QAPI's `BlockExportInfo`, and a member of ours.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    id: String,
    r#type: &'static str,
    node_name: String,
    shutting_down: bool,
    #[serde(rename = "x-coblk-io-status")]
    io_status: &'static str,
}

pub(super) fn add(commands: &mut Commands, types: &ExportTypes) {
    commands.add("block-export-add", |daemon, co, options: ExportOptions| {
        daemon.export_add(co, options)
    });
    if let Ok(schema) = types.schema() {
        commands.table.describe("block-export-add", schema);
    }
    commands.add("block-export-del", |daemon, co, Delete { id, mode }| {
        daemon.export_del(co, &id, mode)
    });
    commands.add("query-block-exports", |daemon, _, ()| {
        Ok(daemon.exports().into_iter().map(info).collect::<Vec<_>>())
    });
    commands.add("x-coblk-export-resume", |daemon, _, Id { id }| daemon.export_resume(&id));
}

fn info(export: ExportInfo) -> Info {
    let ExportInfo { id, kind, node_name, shutting_down, io_status, .. } = export;
    // QAPI's `BlockDeviceIoStatus`.
    let io_status = match io_status {
        IoStatus::Ok => "ok",
        IoStatus::Failed => "failed",
        IoStatus::NoSpace => "nospace",
    };
    Info { id, r#type: kind, node_name, shutting_down, io_status }
}
