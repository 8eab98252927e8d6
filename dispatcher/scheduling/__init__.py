"""What goes next and where: order within a job, placement, commands to hosts."""
