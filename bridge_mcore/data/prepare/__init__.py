"""Building training sets from their published sources: read, cleaned, decontaminated, paired with traces, described."""
