"""What was decided and what ran: releases and their records, audit, and what must be kept for them."""
