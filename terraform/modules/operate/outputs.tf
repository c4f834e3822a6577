output "status_file" {
  description = "The fleet's status as JSON, as of the last change that was applied."
  value       = terraform_data.status.output
}
