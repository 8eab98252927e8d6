"""What the doctor's checks share: findings, and checks of the machine that every service needs."""
