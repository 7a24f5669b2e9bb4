//! The `oxide_flow` program; everything is in the library.

fn main() -> std::process::ExitCode {
    oxide_flow::cli::main()
}
