"""Many jobs from one grid."""
